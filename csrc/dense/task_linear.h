#pragma once
// Linear layers with a task axis, and their derivatives, in ATen's own operators: any device and
// dtype, and differentiable, which forward mode uses.
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace metasparse::dense {

at::Tensor task_linear(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias);

at::Tensor task_linear_pair(const at::Tensor& x1, const at::Tensor& weight1, const at::Tensor& x2,
                            const at::Tensor& weight2, const std::optional<at::Tensor>& bias);

std::tuple<at::Tensor, at::Tensor, at::Tensor> task_linear_backward(const at::Tensor& grad,
                                                                    const at::Tensor& x,
                                                                    const at::Tensor& weight);

}  // namespace metasparse::dense
