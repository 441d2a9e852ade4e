#pragma once
// The gradients of the product of weights and masks, through the dispatcher: differentiable.
#include <ATen/core/Tensor.h>

#include <tuple>

namespace metasparse {

// Of <grad, weight * mask>, for grad and weight (T,O,I,kh,kw) and mask (T,O,I): in both.
std::tuple<at::Tensor, at::Tensor> masked_weight_backward(const at::Tensor& grad,
                                                          const at::Tensor& weight,
                                                          const at::Tensor& mask);

}  // namespace metasparse
