// Partials of the form that the masked convolution family derives from, and their sums:
// masked_conv.h.
#include "masked_conv.h"

namespace metasparse::conv_autograd {

// ---- partials -----------------------------------------------------------------------------------

Tensor over_taps(const Tensor& mask) { return mask.unsqueeze(-1).unsqueeze(-1); }

Tensor over_pixels(const Tensor& bias) { return over_taps(bias).unsqueeze(1); }

Tensor sum_of_pixels(const Tensor& grad) { return grad.sum({1, 3, 4}); }

Tensor partial(Slot slot, const Slots& s, const Tensor& bias, const Geometry& geo) {
  const auto mask = or_none(s[kMask]);
  switch (slot) {
    case kGrad:
      return conv_op().call(s[kInput], s[kWeight], mask, or_none(bias), geo.stride, geo.padding);
    case kInput:
      return input_grad_op().call(s[kGrad], s[kWeight], mask, geo.input_size, geo.stride,
                                  geo.padding);
    case kWeight:
      return weight_grad_op().call(s[kGrad], s[kInput], mask, geo.kernel_size, geo.stride,
                                   geo.padding);
    default:
      return mask_grad_op().call(s[kGrad], s[kInput], s[kWeight], geo.stride, geo.padding);
  }
}

namespace {

// dL/d(slot) at a plus the same at b, in one pass where an op does that.
Tensor partial_pair(Slot slot, const Slots& a, const Slots& b, const Tensor& bias,
                    const Geometry& geo) {
  if (slot == kGrad) {
    return conv_pair_op().call(a[kInput], a[kWeight], or_none(a[kMask]), b[kInput], b[kWeight],
                               or_none(b[kMask]), or_none(bias), geo.stride, geo.padding);
  }
  if (slot == kInput) {
    return input_grad_pair_op().call(a[kGrad], a[kWeight], or_none(a[kMask]), b[kGrad], b[kWeight],
                                     or_none(b[kMask]), geo.input_size, geo.stride, geo.padding);
  }
  if (slot == kWeight && a[kMask].is_same(b[kMask])) {
    return weight_grad_pair_op().call(a[kGrad], a[kInput], b[kGrad], b[kInput], or_none(a[kMask]),
                                      geo.kernel_size, geo.stride, geo.padding);
  }
  return partial(slot, a, Tensor(), geo) + partial(slot, b, Tensor(), geo);
}

}  // namespace

Tensor sum_of_partials(Slot slot, const std::vector<Slots>& terms, Tensor bias,
                       const Geometry& geo) {
  Tensor sum;
  for (size_t k = 0; k < terms.size(); k += 2, bias = Tensor()) {
    const auto next = k + 1 < terms.size() ? partial_pair(slot, terms[k], terms[k + 1], bias, geo)
                                           : partial(slot, terms[k], bias, geo);
    sum = add_defined(sum, next);
  }
  return sum;
}

// ---- definitions --------------------------------------------------------------------------------

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

// ---- forward mode -------------------------------------------------------------------------------

// Product rule: the sum over the slots of all terms of an output, with that slot replaced by its
// tangent.
Tensor tangent(const Definition& definition, int output, const std::vector<Tensor>& arguments,
               const Tensor& value, const Geometry& geo) {
  std::vector<Tensor> primal, dot;
  for (const auto& argument : arguments) dot.push_back(tangent_of(argument));
  const auto defined = [](const Tensor& t) { return t.defined(); };
  if (std::none_of(dot.begin(), dot.end(), defined)) return {};
  for (const auto& argument : arguments) primal.push_back(primal_of(argument));
  if (output == definition.bias_output) return dot[0].defined() ? sum_of_pixels(dot[0]) : Tensor();
  Slot own = kGrad;
  std::vector<Slots> terms;
  for (const Term& term : definition.terms) {
    if (term.output != output) continue;
    own = term.own;
    for (int slot = 0; slot < 4; ++slot) {
      const int argument = term.argument[slot];
      if (argument == kAbsent || !dot[argument].defined()) continue;
      terms.push_back(slots_of(term, primal));
      terms.back()[slot] = dot[argument];
    }
  }
  const auto bias = definition.bias == kAbsent ? Tensor() : dot[definition.bias];
  if (terms.empty() && bias.defined()) {
    return over_pixels(bias).expand_symint(value.sym_sizes()).clone();
  }
  return sum_of_partials(own, terms, bias, geo);
}

}  // namespace metasparse::conv_autograd
