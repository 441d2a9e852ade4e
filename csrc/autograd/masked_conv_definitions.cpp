#include "masked_conv_definitions.h"

namespace metasparse::conv_autograd {

const Definition& forward_definition() {
  static const Definition definition = {
      "MaskedConvBackward", 4, 1, {{kGrad, 0, {kAbsent, 0, 1, 2}}}, 3};
  return definition;
}
const Definition& input_grad_definition() {
  static const Definition definition = {
      "MaskedConvInputGradBackward", 3, 1, {{kInput, 0, {0, kAbsent, 1, 2}}}};
  return definition;
}
const Definition& weight_grad_definition() {
  static const Definition definition = {
      "MaskedConvWeightGradBackward", 3, 1, {{kWeight, 0, {0, 1, kAbsent, 2}}}};
  return definition;
}
const Definition& mask_grad_definition() {
  static const Definition definition = {
      "MaskedConvMaskGradBackward", 3, 1, {{kMask, 0, {0, 1, 2, kAbsent}}}};
  return definition;
}
const Definition& pair_definition() {
  static const Definition definition = {
      "MaskedConvPairBackward",
      7,
      1,
      {{kGrad, 0, {kAbsent, 0, 1, 2}}, {kGrad, 0, {kAbsent, 3, 4, 5}}},
      6};
  return definition;
}
const Definition& input_grad_pair_definition() {
  static const Definition definition = {
      "MaskedConvInputGradPairBackward",
      6,
      1,
      {{kInput, 0, {0, kAbsent, 1, 2}}, {kInput, 0, {3, kAbsent, 4, 5}}}};
  return definition;
}
const Definition& weight_grad_pair_definition() {
  static const Definition definition = {
      "MaskedConvWeightGradPairBackward",
      5,
      1,
      {{kWeight, 0, {0, 1, kAbsent, 4}}, {kWeight, 0, {2, 3, kAbsent, 4}}}};
  return definition;
}

Definition backward_definition(bool input_wanted, bool dense, bool bias_wanted) {
  Definition definition = {
      "MaskedConvDoubleBackward", 4, 3, {{kWeight, 1, {0, 1, kAbsent, dense ? kAbsent : 3}}}};
  if (input_wanted) definition.terms.push_back({kInput, 0, {0, kAbsent, 2, 3}});
  if (bias_wanted) definition.bias_output = 2;
  return definition;
}

Slots slots_of(const Term& term, const std::vector<Tensor>& arguments) {
  Slots slots;
  for (int slot = 0; slot < 4; ++slot) {
    if (term.argument[slot] != kAbsent) slots[slot] = arguments[term.argument[slot]];
  }
  return slots;
}

}  // namespace metasparse::conv_autograd
