#pragma once
// Argument checks of the softmax head's ops, shared by every device.
#include <ATen/core/Tensor.h>

namespace metasparse {

// features (T,N,D), labels (T,N) int64, center (T,C,D), lam (T,).
void check_softmax_head(const char* op, const at::Tensor& features, const at::Tensor& labels,
                        const at::Tensor& center, const at::Tensor& lam);

// The same, and two tensors shaped like center.
void check_softmax_head_grad(const at::Tensor& grad, const at::Tensor& weight,
                             const at::Tensor& features, const at::Tensor& labels,
                             const at::Tensor& center, const at::Tensor& lam);

}  // namespace metasparse
