// Autograd of the softmax head: first order, by the implicit function theorem.
//
// softmax_head_attach passes a weight through and says how the minimiser it stands for moves with
// the features, the center and lambda (softmax_head_grad). The solver itself is never recorded.
// The second derivative is not implemented, and says so when it is asked for.
#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using AttachSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const Tensor&);
using GradSignature = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                         const Tensor&, const Tensor&,
                                                         const Tensor&, const Tensor&);

const auto& attach_op() {
  static const auto op = find_op<AttachSignature>("metasparse::softmax_head_attach");
  return op;
}
const auto& grad_op() {
  static const auto op = find_op<GradSignature>("metasparse::softmax_head_grad");
  return op;
}

void refuse_forward_mode(const Tensor& a, const Tensor& b, const Tensor& c) {
  for (const auto* t : {&a, &b, &c}) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !tangent_of(*t).defined(),
        "softmax_head: expected no forward-mode tangent; only reverse mode is implemented");
  }
}

struct SoftmaxHeadBackward : Node {
  SavedVariable weight_, features_, labels_, center_, lam_;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(3);
    auto [features, center, lam] =
        grad_op().call(grads[0], weight_.unpack(), features_.unpack(), labels_.unpack(),
                       center_.unpack(), lam_.unpack());
    return {features, center, lam};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto* saved : {&weight_, &features_, &labels_, &center_, &lam_}) saved->reset_data();
  }

  std::string name() const override { return "SoftmaxHeadBackward"; }
};

// What a second derivative meets.
struct SoftmaxHeadSecondOrder : Node {
  variable_list apply(variable_list&&) override {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, "softmax_head: expected to be differentiated once, got a second derivative");
  }
  std::string name() const override { return "SoftmaxHeadSecondOrder"; }
};

Tensor softmax_head_attach(c10::DispatchKeySet keys, const Tensor& weight, const Tensor& features,
                           const Tensor& labels, const Tensor& center, const Tensor& lam) {
  refuse_forward_mode(features, center, lam);
  const auto node = node_of<SoftmaxHeadBackward>(features, center, lam);
  if (node) {
    node->weight_ = SavedVariable(weight, /*is_output=*/false);
    node->features_ = SavedVariable(features, false);
    node->labels_ = SavedVariable(labels, false);
    node->center_ = SavedVariable(center, false);
    node->lam_ = SavedVariable(lam, false);
  }
  auto out = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return attach_op().redispatch(below_autograd(keys), weight, features, labels, center, lam);
  }();
  if (node) torch::autograd::set_history(out, node);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> softmax_head_grad(c10::DispatchKeySet keys, const Tensor& grad,
                                                     const Tensor& weight, const Tensor& features,
                                                     const Tensor& labels, const Tensor& center,
                                                     const Tensor& lam) {
  refuse_forward_mode(features, center, lam);
  refuse_forward_mode(grad, weight, Tensor());
  const auto node = node_of<SoftmaxHeadSecondOrder>(grad, weight, features, center, lam);
  auto outs = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return grad_op().redispatch(below_autograd(keys), grad, weight, features, labels, center, lam);
  }();
  if (node) {
    torch::autograd::set_history(std::get<0>(outs), node);
    torch::autograd::set_history(std::get<1>(outs), node);
    torch::autograd::set_history(std::get<2>(outs), node);
  }
  return outs;
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("softmax_head_attach", metasparse::softmax_head_attach);
  m.impl("softmax_head_grad", metasparse::softmax_head_grad);
}
