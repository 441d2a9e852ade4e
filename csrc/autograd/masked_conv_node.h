#pragma once
// Reverse mode of the masked convolution family: one Node for all of its ops.
#include <string>
#include <vector>

#include "masked_conv_definitions.h"
#include "node.h"

namespace metasparse::conv_autograd {

struct FamilyBackward : torch::autograd::Node {
  Definition definition;
  std::vector<torch::autograd::SavedVariable> saved;  // the op's arguments, in order; not its bias
  Geometry geo;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override { return definition.node_name; }

 private:
  bool wanted(int argument);
  bool is_forward() const;
  bool shares_weight_and_mask(const Term& term);

  // The usual backward pass: one op for all of its gradients, so that its own derivative sees them
  // together.
  void backward_of_forward(const std::vector<Tensor>& arguments, const Tensor& grad,
                           torch::autograd::variable_list& out);

  // What weight and mask of a term get where both are wanted.
  void add_weight_and_mask(const Term& term, const std::vector<Tensor>& arguments,
                           const Tensor& grad, torch::autograd::variable_list& out);

  // All that an argument gets but what add_weight_and_mask adds.
  Tensor gradient_of(int argument, const std::vector<Tensor>& arguments,
                     const torch::autograd::variable_list& grads);
};

}  // namespace metasparse::conv_autograd
