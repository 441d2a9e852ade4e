#pragma once
// Reverse mode of the norm_act_pool family: a Node for the block and for each of its derivatives.
#include <string>

#include "node.h"
#include "norm_act_pool_point.h"

namespace metasparse::norm_autograd {

// Of (x, weight, bias) -> y.
struct NormActPoolBackward : torch::autograd::Node {
  SavedPoint point;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override { return "NormActPoolBackward"; }
};

// Of (x_dot, weight_dot, bias_dot, x, weight) -> f'[v].
struct NormActPoolTangentBackward : torch::autograd::Node {
  SavedPoint point;
  SavedDirection direction;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override { return "NormActPoolTangentBackward"; }
};

// Of (grad, x, weight) -> B(grad).
struct NormActPoolBackwardBackward : torch::autograd::Node {
  SavedPoint point;
  torch::autograd::SavedVariable grad;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override { return "NormActPoolBackwardBackward"; }
};

// Of (x_dot, weight_dot, bias_dot, grad, x, weight) -> (f'[v], H(v; grad)).
struct NormActPoolDoubleBackwardBackward : torch::autograd::Node {
  SavedPoint point;
  SavedDirection direction;
  torch::autograd::SavedVariable grad;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override { return "NormActPoolDoubleBackwardBackward"; }
};

}  // namespace metasparse::norm_autograd
