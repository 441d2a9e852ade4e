#pragma once
// Arguments of the cross-entropy of tasks, checked once for every device.
#include <ATen/core/Tensor.h>

namespace metasparse {

// logits (T, N, C) floating, labels (T, N) int64, all at least 1.
void check_task_cross_entropy(const at::Tensor& logits, const at::Tensor& labels);

// And grad (T).
void check_task_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& logits,
                                       const at::Tensor& labels);

// And a direction (T, N, C).
void check_task_cross_entropy_double_backward(const at::Tensor& direction, const at::Tensor& grad,
                                              const at::Tensor& logits, const at::Tensor& labels);

}  // namespace metasparse
