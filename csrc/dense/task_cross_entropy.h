#pragma once
// The cross-entropy of tasks and its derivatives in ATen's own operators: any device and dtype, and
// differentiable, which gives the derivatives above the second.
#include <ATen/core/Tensor.h>

#include <tuple>

namespace metasparse::dense {

at::Tensor task_cross_entropy(const at::Tensor& logits, const at::Tensor& labels);

at::Tensor task_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& logits,
                                       const at::Tensor& labels);

std::tuple<at::Tensor, at::Tensor> task_cross_entropy_double_backward(const at::Tensor& direction,
                                                                      const at::Tensor& grad,
                                                                      const at::Tensor& logits,
                                                                      const at::Tensor& labels);

}  // namespace metasparse::dense
