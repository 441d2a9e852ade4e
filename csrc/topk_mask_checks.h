#pragma once
#include <ATen/core/Tensor.h>

namespace metasparse {

// scores (S, n) floating, k (S) int64 on the same device.
void check_topk_mask(const at::Tensor& scores, const at::Tensor& k);

}  // namespace metasparse
