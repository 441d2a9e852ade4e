#pragma once
// The product of weights and masks that a masked convolution is one of.
#include <ATen/core/Tensor.h>

#include <utility>

namespace metasparse::cpu {

// What weight (T,O,I,kh,kw) and mask (T,O,I) get of the gradient of weight * mask, in one pass:
// grad * mask, and the sum of grad * weight over the taps of each kernel. float or double.
std::pair<at::Tensor, at::Tensor> masked_weight_backward(const at::Tensor& grad,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& mask);

}  // namespace metasparse::cpu
