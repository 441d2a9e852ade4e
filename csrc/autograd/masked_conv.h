// The derivatives of the masked convolution family: masked_conv.cpp says how they are made.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../find_op.h"
#include "node.h"

namespace metasparse::conv_autograd {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using OptionalTensor = std::optional<Tensor>;

// ---- the ops, called through the dispatcher -----------------------------------------------------

using ConvSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                             const OptionalTensor&, IntArrayRef, IntArrayRef);
using PartialSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef,
                                IntArrayRef, IntArrayRef);
using MaskGradSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, IntArrayRef,
                                 IntArrayRef);
using ConvPairSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                                 const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 IntArrayRef, IntArrayRef);
using InputGradPairSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                                      const Tensor&, const Tensor&, const OptionalTensor&,
                                      SymIntArrayRef, IntArrayRef, IntArrayRef);
using WeightGradPairSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const OptionalTensor&, SymIntArrayRef, IntArrayRef,
                                       IntArrayRef);
using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;
using BackwardSignature = BackwardResult(const Tensor&, const Tensor&, const Tensor&,
                                         const OptionalTensor&, bool, bool, bool, IntArrayRef,
                                         IntArrayRef);

inline const auto& conv_op() {
  static const auto op = find_op<ConvSignature>("metasparse::masked_conv");
  return op;
}
inline const auto& input_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_input_grad");
  return op;
}
inline const auto& weight_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_weight_grad");
  return op;
}
inline const auto& mask_grad_op() {
  static const auto op = find_op<MaskGradSignature>("metasparse::masked_conv_mask_grad");
  return op;
}
inline const auto& conv_pair_op() {
  static const auto op = find_op<ConvPairSignature>("metasparse::masked_conv_pair");
  return op;
}
inline const auto& input_grad_pair_op() {
  static const auto op = find_op<InputGradPairSignature>("metasparse::masked_conv_input_grad_pair");
  return op;
}
inline const auto& weight_grad_pair_op() {
  static const auto op =
      find_op<WeightGradPairSignature>("metasparse::masked_conv_weight_grad_pair");
  return op;
}
inline const auto& backward_op() {
  static const auto op = find_op<BackwardSignature>("metasparse::masked_conv_backward");
  return op;
}

// ---- partial derivatives of L(g, x, w, m) = <g, conv(x, w * m)>, and sums of them ---------------

enum Slot { kGrad, kInput, kWeight, kMask };
using Slots = std::array<Tensor, 4>;

struct Geometry {
  std::vector<c10::SymInt> input_size, kernel_size;
  std::vector<int64_t> stride, padding;
};

// A mask as (T, O, I, 1, 1) and a bias as (T, 1, O, 1, 1), for broadcasting.
Tensor over_taps(const Tensor& mask);
Tensor over_pixels(const Tensor& bias);

// The gradient of a bias: the sum over N, H and W.
Tensor sum_of_pixels(const Tensor& grad);

// dL/d(slot) with the other slots given; the entry of `slot` itself is not read. Only masked_conv
// has a bias to add.
Tensor partial(Slot slot, const Slots& slots, const Tensor& bias, const Geometry& geo);

// The sum of dL/d(slot) over all terms, two at a time; undefined where there are none.
Tensor sum_of_partials(Slot slot, const std::vector<Slots>& terms, Tensor bias,
                       const Geometry& geo);

// ---- what each op computes, as partials of L ----------------------------------------------------

constexpr int kAbsent = -1;

// One term of an output: dL/d(own), with argument[slot] the op's argument in each other slot.
struct Term {
  Slot own;
  int output;
  std::array<int, 4> argument;

  bool reads(int wanted) const {
    return std::find(argument.begin(), argument.end(), wanted) != argument.end();
  }
};

struct Definition {
  const char* node_name;
  int arguments, outputs;
  std::vector<Term> terms;
  int bias = kAbsent;         // the argument that is added to output 0
  int bias_output = kAbsent;  // the output that is the sum of argument 0 over samples and pixels
};

const Definition& forward_definition();
const Definition& input_grad_definition();
const Definition& weight_grad_definition();
const Definition& mask_grad_definition();
const Definition& pair_definition();
const Definition& input_grad_pair_definition();
const Definition& weight_grad_pair_definition();

// Of masked_conv_backward, by the gradients that are wanted; `dense`: the weight's without the
// mask.
Definition backward_definition(bool input_wanted, bool dense, bool bias_wanted);

// The slots of a term, from a value for each argument.
Slots slots_of(const Term& term, const std::vector<Tensor>& arguments);

// ---- reverse mode: one Node for all ops ---------------------------------------------------------

// Saves the op's arguments, in order; not its bias.
struct MaskedConvNode : SavingNode {
  Definition definition;
  Geometry geo;

  torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads) override;
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

  // The gradient of one argument, without the part that add_weight_and_mask adds.
  Tensor gradient_of(int argument, const std::vector<Tensor>& arguments,
                     const torch::autograd::variable_list& grads);
};

// ---- forward mode -------------------------------------------------------------------------------

// The tangent of an output whose value is given; undefined where no argument has one.
Tensor tangent(const Definition& definition, int output, const std::vector<Tensor>& arguments,
               const Tensor& value, const Geometry& geo);

}  // namespace metasparse::conv_autograd
