#pragma once
// Arguments of the makers of masks, checked once for every device.
#include <ATen/core/Tensor.h>

namespace metasparse {

// scores floating, threshold finite.
void check_binary_mask(const at::Tensor& scores, double threshold);

// scores (S, n) floating, k (S) int64 on the same device.
void check_topk_mask(const at::Tensor& scores, const at::Tensor& k);

}  // namespace metasparse
