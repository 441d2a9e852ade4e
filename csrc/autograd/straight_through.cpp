// Autograd of the makers of masks. A mask is piecewise constant in its scores, so its derivative is
// replaced by the identity (Bengio et al., "Estimating or Propagating Gradients Through Stochastic
// Neurons for Conditional Computation", 2013), in reverse and forward mode. The identity is linear:
// higher derivatives flow through the gradient itself and need nothing saved.
#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::variable_list;

struct StraightThroughBackward : Node {
  variable_list apply(variable_list&& grads) override { return {grads[0]}; }
  std::string name() const override { return "StraightThroughBackward"; }
};

template <class Redispatch>
Tensor straight_through(const Tensor& scores, Redispatch&& redispatch) {
  const auto node = node_of<StraightThroughBackward>(scores);
  auto mask = run_below_autograd(redispatch);
  if (node) torch::autograd::set_history(mask, node);
  // a copy, so that writing to the mask in place leaves the tangent of the scores alone
  const auto dot = tangent_of(scores);
  if (dot.defined()) set_tangent(mask, dot.clone());
  return mask;
}

Tensor binary_mask(c10::DispatchKeySet keys, const Tensor& scores, double threshold) {
  static const auto op = find_op<Tensor(const Tensor&, double)>("metasparse::binary_mask");
  return straight_through(scores,
                          [&] { return op.redispatch(below_autograd(keys), scores, threshold); });
}

Tensor topk_mask(c10::DispatchKeySet keys, const Tensor& scores, const Tensor& k) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&)>("metasparse::topk_mask");
  return straight_through(scores, [&] { return op.redispatch(below_autograd(keys), scores, k); });
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("binary_mask", metasparse::binary_mask);
  m.impl("topk_mask", metasparse::topk_mask);
}
