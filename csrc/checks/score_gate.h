#pragma once
// Arguments of the gates that open by a score, checked once for every device.
#include <ATen/core/Tensor.h>

#include <optional>

namespace metasparse {

// scores floating, with an axis T.
void check_score_gate(const at::Tensor& scores);

// grad, factor and scores of one shape (T, ...) and kind; order >= 1.
void check_score_gate_grad(const at::Tensor& grad, const std::optional<at::Tensor>& factor,
                           const at::Tensor& scores, int64_t order);

// gradient and scores (T, K), offset and share (), of one kind; l1 finite.
void check_add_budget_gradient(const at::Tensor& gradient, const at::Tensor& scores,
                               const at::Tensor& offset, const at::Tensor& share, double l1);

}  // namespace metasparse
