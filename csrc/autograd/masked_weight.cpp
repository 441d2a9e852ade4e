// Autograd of the product of weights and masks, as what reads it in a convolution is
// differentiated.
//
// B(w, m) = w m is linear in each argument. Its gradient with g is the pair (g m, sum of g w over
// the taps), and the gradient of that with (a, b) is a m + w b in g, and the pair of g with (b, a),
// (g b, sum of g a), in w and m. So two ops are closed under differentiation, to any order:
//
//     masked_weight_pair        w1 m1 + w2 m2
//     masked_weight_backward    (g m, sum g w)
//
// Forward mode goes through the same in ATen's operators.

#include "../dense/masked_weight.h"
#include "masked_weight.h"
#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
using torch::autograd::variable_list;

const auto& backward_op() {
  static const auto op =
      find_op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)>(
          "metasparse::masked_weight_backward");
  return op;
}

const auto& pair_op() {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&)>(
          "metasparse::masked_weight_pair");
  return op;
}

// Saves weight1, mask1, weight2, mask2.
struct MaskedWeightPairBackward : SavingNode {
  variable_list gradients(const variable_list& grads) override {
    variable_list out(4);
    if (!grads[0].defined()) return out;
    for (size_t first = 0; first < 4; first += 2) {
      if (!task_should_compute_output(first) && !task_should_compute_output(first + 1)) continue;
      std::tie(out[first], out[first + 1]) =
          backward_op().call(grads[0], value(first), value(first + 1));
    }
    return out;
  }
  std::string name() const override { return "MaskedWeightPairBackward"; }
};

// Saves grad, weight, mask.
struct MaskedWeightBackwardBackward : SavingNode {
  variable_list gradients(const variable_list& grads) override {
    const Tensor &a = grads[0], &b = grads[1];
    const Tensor g = value(0), w = value(1), m = value(2);
    variable_list out(3);
    if (task_should_compute_output(0)) {
      if (a.defined() && b.defined()) {
        out[0] = pair_op().call(a, m, w, b);
      } else if (a.defined()) {
        out[0] = a * dense::over_taps(m);
      } else if (b.defined()) {
        out[0] = w * dense::over_taps(b);
      }
    }
    const bool to_weight = task_should_compute_output(1) && b.defined();
    const bool to_mask = task_should_compute_output(2) && a.defined();
    if (to_weight && to_mask) {
      std::tie(out[1], out[2]) = backward_op().call(g, a, b);
    } else if (to_weight) {
      out[1] = g * dense::over_taps(b);
    } else if (to_mask) {
      out[2] = (g * a).sum({-2, -1});
    }
    return out;
  }
  std::string name() const override { return "MaskedWeightBackwardBackward"; }
};

Tensor masked_weight_pair(c10::DispatchKeySet keys, const Tensor& weight1, const Tensor& mask1,
                          const Tensor& weight2, const Tensor& mask2) {
  if (any_tangent({weight1, mask1, weight2, mask2})) {
    return dense::masked_weight_pair(weight1, mask1, weight2, mask2);
  }
  const auto node = node_of<MaskedWeightPairBackward>(weight1, mask1, weight2, mask2);
  auto out = run_below_autograd(
      [&] { return pair_op().redispatch(below_autograd(keys), weight1, mask1, weight2, mask2); });
  if (node) {
    node->save({weight1, mask1, weight2, mask2});
    torch::autograd::set_history(out, node);
  }
  return out;
}

std::tuple<Tensor, Tensor> masked_weight_backward_autograd(c10::DispatchKeySet keys,
                                                           const Tensor& grad, const Tensor& weight,
                                                           const Tensor& mask) {
  if (any_tangent({grad, weight, mask})) return dense::masked_weight_backward(grad, weight, mask);
  const auto node = node_of<MaskedWeightBackwardBackward>(grad, weight, mask);
  auto [weight_grad, mask_grad] = run_below_autograd(
      [&] { return backward_op().redispatch(below_autograd(keys), grad, weight, mask); });
  if (node) {
    node->save({grad, weight, mask});
    torch::autograd::set_history({weight_grad, mask_grad}, node);
  }
  return {weight_grad, mask_grad};
}

}  // namespace

std::tuple<Tensor, Tensor> masked_weight_backward(const Tensor& grad, const Tensor& weight,
                                                  const Tensor& mask) {
  return backward_op().call(grad, weight, mask);
}

}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("masked_weight_pair", metasparse::masked_weight_pair);
  m.impl("masked_weight_backward", metasparse::masked_weight_backward_autograd);
}
