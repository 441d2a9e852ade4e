// Autograd of the cross-entropy of tasks. With p the probabilities and e the one-hot labels of a
// sample, N samples and a direction v in the logits:
//
//     backward          B(g) = g / N (p - e)
//     double_backward   sum of v (p - e) / N in g, and g / N p (v - <p, v>) in the logits
//
// Third derivatives, and forward mode, are those of the same formulas in ATen's operators.

#include "../dense/task_cross_entropy.h"
#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
using torch::autograd::variable_list;
using Pair = std::tuple<Tensor, Tensor>;

const auto& forward_op() {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&)>("metasparse::task_cross_entropy");
  return op;
}

const auto& backward_op() {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&)>(
      "metasparse::task_cross_entropy_backward");
  return op;
}

const auto& double_backward_op() {
  static const auto op = find_op<Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&)>(
      "metasparse::task_cross_entropy_double_backward");
  return op;
}

// Saves logits, labels.
struct TaskCrossEntropyBackward : SavingNode {
  variable_list gradients(const variable_list& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    return {backward_op().call(grads[0], value(0), value(1))};
  }
  std::string name() const override { return "TaskCrossEntropyBackward"; }
};

// Saves grad, logits, labels.
struct TaskCrossEntropyBackwardBackward : SavingNode {
  variable_list gradients(const variable_list& grads) override {
    if (!grads[0].defined()) return variable_list(2);
    auto [grad_dot, logits_grad] =
        double_backward_op().call(grads[0], value(0), value(1), value(2));
    return {grad_dot, logits_grad};
  }
  std::string name() const override { return "TaskCrossEntropyBackwardBackward"; }
};

Tensor task_cross_entropy(c10::DispatchKeySet keys, const Tensor& logits, const Tensor& labels) {
  if (tangent_of(logits).defined()) return dense::task_cross_entropy(logits, labels);
  const auto node = node_of<TaskCrossEntropyBackward>(logits);
  auto losses = run_below_autograd(
      [&] { return forward_op().redispatch(below_autograd(keys), logits, labels); });
  if (node) {
    node->save({logits, labels});
    torch::autograd::set_history(losses, node);
  }
  return losses;
}

Tensor task_cross_entropy_backward(c10::DispatchKeySet keys, const Tensor& grad,
                                   const Tensor& logits, const Tensor& labels) {
  if (tangent_of(grad).defined() || tangent_of(logits).defined()) {
    return dense::task_cross_entropy_backward(grad, logits, labels);
  }
  const auto node = node_of<TaskCrossEntropyBackwardBackward>(grad, logits);
  auto out = run_below_autograd(
      [&] { return backward_op().redispatch(below_autograd(keys), grad, logits, labels); });
  if (node) {
    node->save({grad, logits, labels});
    torch::autograd::set_history(out, node);
  }
  return out;
}

Pair task_cross_entropy_double_backward(c10::DispatchKeySet keys, const Tensor& direction,
                                        const Tensor& grad, const Tensor& logits,
                                        const Tensor& labels) {
  const bool recorded = torch::autograd::compute_requires_grad(direction, grad, logits);
  const bool forward_mode =
      tangent_of(direction).defined() || tangent_of(grad).defined() || tangent_of(logits).defined();
  if (recorded || forward_mode) {
    return dense::task_cross_entropy_double_backward(direction, grad, logits, labels);
  }
  return run_below_autograd([&] {
    return double_backward_op().redispatch(below_autograd(keys), direction, grad, logits, labels);
  });
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("task_cross_entropy", metasparse::task_cross_entropy);
  m.impl("task_cross_entropy_backward", metasparse::task_cross_entropy_backward);
  m.impl("task_cross_entropy_double_backward", metasparse::task_cross_entropy_double_backward);
}
