#include "score_gate.h"

#include <cmath>

#include "common.h"

namespace metasparse {
namespace {

void check_scores(const char* op, const at::Tensor& scores) {
  TORCH_CHECK_TYPE(scores.is_floating_point(), op, ": expected scores of a floating dtype, got ",
                   dtype_name(scores.scalar_type()));
  TORCH_CHECK_VALUE(scores.dim() >= 1, op, ": expected scores of shape (T, ...), got ",
                    scores.sym_sizes());
}

}  // namespace

void check_score_gate(const at::Tensor& scores) { check_scores("score_gate", scores); }

void check_score_gate_grad(const at::Tensor& grad, const std::optional<at::Tensor>& factor,
                           const at::Tensor& scores, int64_t order) {
  constexpr auto op = "score_gate_grad";
  check_scores(op, scores);
  check_shape_like(op, "grad", grad, "scores", scores);
  check_same_kind(op, "grad", grad, "scores", scores);
  if (factor.has_value()) {
    check_shape_like(op, "factor", *factor, "scores", scores);
    check_same_kind(op, "factor", *factor, "scores", scores);
  }
  TORCH_CHECK_VALUE(order >= 1, op, ": expected order >= 1, got ", order);
}

void check_add_budget_gradient(const at::Tensor& gradient, const at::Tensor& scores,
                               const at::Tensor& offset, const at::Tensor& share, double l1) {
  constexpr auto op = "add_budget_gradient";
  check_rank(op, "scores", scores, 2, "(T, K)");
  check_scores(op, scores);
  check_shape_like(op, "gradient", gradient, "scores", scores);
  check_same_kind(op, "gradient", gradient, "scores", scores);
  check_rank(op, "offset", offset, 0, "()");
  check_same_kind(op, "offset", offset, "scores", scores);
  check_rank(op, "share", share, 0, "()");
  check_same_kind(op, "share", share, "scores", scores);
  TORCH_CHECK_VALUE(std::isfinite(l1), op, ": expected l1 to be finite, got ", l1);
}

}  // namespace metasparse
