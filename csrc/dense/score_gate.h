#pragma once
// Gates that open by a score, in ATen's own operators: any device and dtype.
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace metasparse::dense {

// The n-th derivative of the logistic is y (1 - y) q(y), y its value: the coefficients of q, the
// constant first. q of order 1 is 1; the next is (1 - 2 y) q + y (1 - y) q'.
std::vector<double> logistic_polynomial(int64_t order);

// grad * factor * logistic^(order)(scores); differentiable.
at::Tensor score_gate_grad(const at::Tensor& grad, const std::optional<at::Tensor>& factor,
                           const at::Tensor& scores, int64_t order);

}  // namespace metasparse::dense
