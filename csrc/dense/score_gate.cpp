#include "score_gate.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks/score_gate.h"

namespace metasparse::dense {

using at::Tensor;

std::vector<double> logistic_polynomial(int64_t order) {
  std::vector<double> q = {1};
  for (int64_t n = 1; n < order; ++n) {
    std::vector<double> next(q.size() + 1, 0);
    for (size_t k = 0; k < q.size(); ++k) {
      const auto degree = static_cast<double>(k);
      next[k] += q[k] * (1 + degree);
      next[k + 1] -= q[k] * (2 + degree);
    }
    q = next;
  }
  return q;
}

Tensor score_gate_grad(const Tensor& grad, const std::optional<Tensor>& factor,
                       const Tensor& scores, int64_t order) {
  check_score_gate_grad(grad, factor, scores, order);
  const auto y = scores.sigmoid();
  const auto q = logistic_polynomial(order);
  auto slope = (1 - y) * y;
  if (order > 1) {
    auto value = y * q.back();
    for (size_t k = q.size() - 1; k-- > 0;) {
      value = value + q[k];
      if (k > 0) value = value * y;
    }
    slope = slope * value;
  }
  return (factor.has_value() ? grad * *factor : grad) * slope;
}

namespace {

Tensor score_gate(const Tensor& scores) {
  check_score_gate(scores);
  auto mask = at::empty_like(scores, at::MemoryFormat::Contiguous);
  return at::gt_out(mask, scores.sigmoid(), 0.5);
}

void add_budget_gradient(Tensor& gradient, const Tensor& scores, const Tensor& offset,
                         const Tensor& share, double l1) {
  check_add_budget_gradient(gradient, scores, offset, share, l1);
  const auto y = scores.sigmoid();
  const auto slope = offset + share * (y > 0.5).to(y.scalar_type()).sum(-1, /*keepdim=*/true);
  gradient.add_(slope * ((1 - y) * y)).add_(scores.sign(), l1);
}

}  // namespace
}  // namespace metasparse::dense

TORCH_LIBRARY_FRAGMENT(metasparse_dense, m) {
  m.def("score_gate", metasparse::dense::score_gate);
  m.def("score_gate_grad", metasparse::dense::score_gate_grad);
  m.def(
      "add_budget_gradient(Tensor(a!) gradient, Tensor scores, Tensor offset, Tensor share, float "
      "l1) -> ()",
      metasparse::dense::add_budget_gradient);
}
