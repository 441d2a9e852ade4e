#pragma once
// Arguments of linear layers with a task axis, checked once for every device.
#include <ATen/core/Tensor.h>

#include <optional>

namespace metasparse {

// x (T, N, F), weight (T, O, F), bias (T, O), of one kind.
void check_task_linear(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias);

// And a second pair of operands like the first.
void check_task_linear_pair(const at::Tensor& x1, const at::Tensor& weight1, const at::Tensor& x2,
                            const at::Tensor& weight2, const std::optional<at::Tensor>& bias);

// And grad (T, N, O).
void check_task_linear_backward(const at::Tensor& grad, const at::Tensor& x,
                                const at::Tensor& weight);

}  // namespace metasparse
