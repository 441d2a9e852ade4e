#pragma once
// The product of weights and masks, and its gradients, in ATen's own operators: any device and
// dtype, and differentiable, which forward mode uses.
#include <ATen/core/Tensor.h>

#include <tuple>

namespace metasparse::dense {

// (T,O,I) as (T,O,I,1,1).
at::Tensor over_taps(const at::Tensor& mask);

at::Tensor masked_weight_pair(const at::Tensor& weight1, const at::Tensor& mask1,
                              const at::Tensor& weight2, const at::Tensor& mask2);

std::tuple<at::Tensor, at::Tensor> masked_weight_backward(const at::Tensor& grad,
                                                          const at::Tensor& weight,
                                                          const at::Tensor& mask);

}  // namespace metasparse::dense
