// Autograd of the gate that opens by a score: 1[logistic(s) > 1/2]. The threshold counts as the
// identity, the logistic as what it is, so the derivatives of all orders are the logistic's:
//
//     score_gate_grad(g, f, s; n) = g f logistic^(n)(s)
//
// is of the same form in g and in f, and in s of order n + 1. Forward mode is composed of ATen's
// operators.

#include "../dense/score_gate.h"
#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

const auto& gate_op() {
  static const auto op = find_op<Tensor(const Tensor&)>("metasparse::score_gate");
  return op;
}

const auto& grad_op() {
  static const auto op =
      find_op<Tensor(const Tensor&, const OptionalTensor&, const Tensor&, int64_t)>(
          "metasparse::score_gate_grad");
  return op;
}

// Saves scores.
struct ScoreGateBackward : SavingNode {
  variable_list gradients(const variable_list& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    return {grad_op().call(grads[0], std::nullopt, value(0), 1)};
  }
  std::string name() const override { return "ScoreGateBackward"; }
};

// Saves grad, factor, scores.
struct ScoreGateGradBackward : SavingNode {
  int64_t order = 1;

  variable_list gradients(const variable_list& grads) override {
    variable_list out(3);
    const Tensor& h = grads[0];
    if (!h.defined()) return out;
    const Tensor g = value(0), f = value(1), s = value(2);
    if (task_should_compute_output(0)) out[0] = grad_op().call(h, or_none(f), s, order);
    if (task_should_compute_output(1)) out[1] = grad_op().call(h, g, s, order);
    if (task_should_compute_output(2)) {
      out[2] = grad_op().call(f.defined() ? g * f : g, h, s, order + 1);
    }
    return out;
  }
  std::string name() const override { return "ScoreGateGradBackward"; }
};

Tensor score_gate(c10::DispatchKeySet keys, const Tensor& scores) {
  const auto node = node_of<ScoreGateBackward>(scores);
  auto mask =
      run_below_autograd([&] { return gate_op().redispatch(below_autograd(keys), scores); });
  if (node) {
    node->save({scores});
    torch::autograd::set_history(mask, node);
  }
  if (const auto dot = tangent_of(scores); dot.defined()) {
    set_tangent(mask, grad_op().call(dot, std::nullopt, primal_of(scores), 1));
  }
  return mask;
}

Tensor score_gate_grad(c10::DispatchKeySet keys, const Tensor& grad, const OptionalTensor& factor_,
                       const Tensor& scores, int64_t order) {
  const Tensor factor = or_undefined(factor_);
  if (tangent_of(grad).defined() || tangent_of(factor).defined() || tangent_of(scores).defined()) {
    return dense::score_gate_grad(grad, factor_, scores, order);
  }
  const auto node = node_of<ScoreGateGradBackward>(grad, factor, scores);
  auto out = run_below_autograd(
      [&] { return grad_op().redispatch(below_autograd(keys), grad, factor_, scores, order); });
  if (node) {
    node->save({grad, factor, scores});
    node->order = order;
    torch::autograd::set_history(out, node);
  }
  return out;
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("score_gate", metasparse::score_gate);
  m.impl("score_gate_grad", metasparse::score_gate_grad);
}
