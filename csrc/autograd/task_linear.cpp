// Autograd of linear layers with a task axis. Like the masked convolution (masked_conv.cpp), they
// derive from a form that is linear in each slot, L(g, x, w) = <g, x w'>, so three ops are closed
// under differentiation, to any order:
//
//     task_linear             x w' + b, and of two terms: task_linear_pair
//     task_linear_backward    (g w, g' x, sum of g): the partials in x and w, and that in b
//
// The gradient of the latter with (a, c, d) is a w' + x c' + d in g, and (g c, g' a) in x and w.
// Forward mode goes through the same in ATen's operators.
#include <algorithm>

#include "../dense/task_linear.h"
#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

const auto& linear_op() {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&)>(
      "metasparse::task_linear");
  return op;
}

const auto& linear_pair_op() {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const OptionalTensor&)>("metasparse::task_linear_pair");
  return op;
}

const auto& linear_backward_op() {
  static const auto op = find_op<Triple(const Tensor&, const Tensor&, const Tensor&)>(
      "metasparse::task_linear_backward");
  return op;
}

// What follows the arguments of one term or of two: x, w, (x, w,) b.
// Saves x and w of each term.
struct TaskLinearBackward : SavingNode {
  bool biased = false;

  variable_list gradients(const variable_list& grads) override {
    const size_t bias = saved.size();
    variable_list out(bias + 1);
    const Tensor& g = grads[0];
    if (!g.defined()) return out;
    for (size_t first = 0; first < bias; first += 2) {
      const bool to_x = task_should_compute_output(first);
      const bool to_weight = task_should_compute_output(first + 1);
      if (to_x && to_weight) {
        Tensor sum;
        std::tie(out[first], out[first + 1], sum) =
            linear_backward_op().call(g, value(first), value(first + 1));
        if (biased) out[bias] = sum;
      } else if (to_x) {
        out[first] = at::bmm(g, value(first + 1));
      } else if (to_weight) {
        out[first + 1] = at::bmm(g.mT(), value(first));
      }
    }
    if (biased && !out[bias].defined() && task_should_compute_output(bias)) out[bias] = g.sum(1);
    return out;
  }
  std::string name() const override { return "TaskLinearBackward"; }
};

// Saves grad, x, weight.
struct TaskLinearBackwardBackward : SavingNode {
  variable_list gradients(const variable_list& grads) override {
    const Tensor &a = grads[0], &c = grads[1], &d = grads[2];
    const Tensor g = value(0), x = value(1), w = value(2);
    variable_list out(3);
    if (task_should_compute_output(0)) {
      if (a.defined() && c.defined()) {
        out[0] = linear_pair_op().call(a, w, x, c, or_none(d));
      } else if (a.defined()) {
        out[0] = linear_op().call(a, w, or_none(d));
      } else if (c.defined()) {
        out[0] = linear_op().call(x, c, or_none(d));
      } else if (d.defined()) {
        out[0] = d.unsqueeze(1).expand_symint(g.sym_sizes());
      }
    }
    const bool to_x = task_should_compute_output(1) && c.defined();
    const bool to_weight = task_should_compute_output(2) && a.defined();
    if (to_x && to_weight) {
      std::tie(out[1], out[2], std::ignore) = linear_backward_op().call(g, a, c);
    } else if (to_x) {
      out[1] = at::bmm(g, c);
    } else if (to_weight) {
      out[2] = at::bmm(g.mT(), a);
    }
    return out;
  }
  std::string name() const override { return "TaskLinearBackwardBackward"; }
};

template <class Redispatch>
Tensor linear_with_autograd(const std::vector<Tensor>& terms, const Tensor& bias,
                            Redispatch&& redispatch) {
  auto arguments = terms;
  arguments.push_back(bias);
  const auto node = node_of<TaskLinearBackward>(at::TensorList(arguments));
  Tensor out = run_below_autograd(redispatch);
  if (node) {
    node->biased = bias.defined();
    node->save(terms);
    torch::autograd::set_history(out, node);
  }
  return out;
}

Tensor task_linear(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                   const OptionalTensor& bias) {
  if (any_tangent({x, weight, or_undefined(bias)})) return dense::task_linear(x, weight, bias);
  return linear_with_autograd({x, weight}, or_undefined(bias), [&] {
    return linear_op().redispatch(below_autograd(keys), x, weight, bias);
  });
}

Tensor task_linear_pair(c10::DispatchKeySet keys, const Tensor& x1, const Tensor& weight1,
                        const Tensor& x2, const Tensor& weight2, const OptionalTensor& bias) {
  if (any_tangent({x1, weight1, x2, weight2, or_undefined(bias)})) {
    return dense::task_linear_pair(x1, weight1, x2, weight2, bias);
  }
  return linear_with_autograd({x1, weight1, x2, weight2}, or_undefined(bias), [&] {
    return linear_pair_op().redispatch(below_autograd(keys), x1, weight1, x2, weight2, bias);
  });
}

Triple task_linear_backward(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& x,
                            const Tensor& weight) {
  if (any_tangent({grad, x, weight})) return dense::task_linear_backward(grad, x, weight);
  const auto node = node_of<TaskLinearBackwardBackward>(grad, x, weight);
  auto [x_grad, weight_grad, bias_grad] = run_below_autograd(
      [&] { return linear_backward_op().redispatch(below_autograd(keys), grad, x, weight); });
  if (node) {
    node->save({grad, x, weight});
    torch::autograd::set_history({x_grad, weight_grad, bias_grad}, node);
  }
  return {x_grad, weight_grad, bias_grad};
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("task_linear", metasparse::task_linear);
  m.impl("task_linear_pair", metasparse::task_linear_pair);
  m.impl("task_linear_backward", metasparse::task_linear_backward);
}
