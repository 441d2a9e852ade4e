#pragma once
// Arguments of the product of weights and masks, checked once for every device.
#include <ATen/core/Tensor.h>

namespace metasparse {

// weights (T, O, I, kh, kw) and masks (T, O, I) of one kind.
void check_masked_weight_pair(const at::Tensor& weight1, const at::Tensor& mask1,
                              const at::Tensor& weight2, const at::Tensor& mask2);

// grad and weight (T, O, I, kh, kw), mask (T, O, I), of one kind.
void check_masked_weight_backward(const at::Tensor& grad, const at::Tensor& weight,
                                  const at::Tensor& mask);

}  // namespace metasparse
