// Autograd of the masked convolution family.
//
// Everything derives from one form that is linear in each of its four slots,
//
//     L(g, x, w, m) = <g, conv(x, w * m)>,
//
// whose partial derivatives are the ops masked_conv (dL/dg), masked_conv_input_grad (dL/dx),
// masked_conv_weight_grad (dL/dw) and masked_conv_mask_grad (dL/dm). Every op of the family puts
// out sums of such partials: a pair op the sum of two, masked_conv_backward two of them side by
// side. The derivative of a partial, contracted with an incoming gradient, is L with that gradient
// in the partial's own slot, differentiated in another slot: again a partial. So one Node serves
// the whole family, to any order and in forward mode, and where several terms meet in one sum they
// are computed two at a time.
#include <algorithm>
#include <array>

#include "node.h"

namespace metasparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

enum Slot { kGrad, kInput, kWeight, kMask };
using Slots = std::array<Tensor, 4>;

struct Geometry {
  std::vector<c10::SymInt> input_size, kernel_size;
  std::vector<int64_t> stride, padding;
};

// ---- the ops, called through the dispatcher ----------------------------------------------------

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

const auto& conv_op() {
  static const auto op = find_op<ConvSignature>("metasparse::masked_conv");
  return op;
}
const auto& input_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_input_grad");
  return op;
}
const auto& weight_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::masked_conv_weight_grad");
  return op;
}
const auto& mask_grad_op() {
  static const auto op = find_op<MaskGradSignature>("metasparse::masked_conv_mask_grad");
  return op;
}
const auto& conv_pair_op() {
  static const auto op = find_op<ConvPairSignature>("metasparse::masked_conv_pair");
  return op;
}
const auto& input_grad_pair_op() {
  static const auto op = find_op<InputGradPairSignature>("metasparse::masked_conv_input_grad_pair");
  return op;
}
const auto& weight_grad_pair_op() {
  static const auto op =
      find_op<WeightGradPairSignature>("metasparse::masked_conv_weight_grad_pair");
  return op;
}
const auto& backward_op() {
  static const auto op = find_op<BackwardSignature>("metasparse::masked_conv_backward");
  return op;
}

// ---- sums of partials --------------------------------------------------------------------------

Tensor over_taps(const Tensor& mask) { return mask.unsqueeze(-1).unsqueeze(-1); }

Tensor over_pixels(const Tensor& bias) { return over_taps(bias).unsqueeze(1); }

Tensor sum_of_pixels(const Tensor& grad) { return grad.sum({1, 3, 4}); }

// dL/d(slot) at the given slots; the entry of `slot` itself is not read. Only masked_conv has a
// bias to add.
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

// The sum over all terms, undefined where there are none.
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

// ---- what an op computes, as partials ----------------------------------------------------------

constexpr int kAbsent = -1;

// A partial that is added to an output, taken in slot `own` with these arguments of the op in the
// other slots.
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

// The slots of a term, from a value for each argument.
Slots slots_of(const Term& term, const std::vector<Tensor>& arguments) {
  Slots slots;
  for (int slot = 0; slot < 4; ++slot) {
    if (term.argument[slot] != kAbsent) slots[slot] = arguments[term.argument[slot]];
  }
  return slots;
}

// ---- reverse mode ------------------------------------------------------------------------------

struct FamilyBackward : Node {
  Definition definition;
  std::vector<SavedVariable> saved;
  Geometry geo;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(definition.arguments);
    std::vector<Tensor> arguments;
    for (auto& variable : saved) arguments.push_back(variable.unpack());
    if (is_forward()) {
      if (grads[0].defined()) backward_of_forward(arguments, grads[0], out);
      return out;
    }
    for (int argument = 0; argument < definition.arguments; ++argument) {
      if (wanted(argument)) out[argument] = gradient_of(argument, arguments, grads);
    }
    for (const Term& term : definition.terms) {
      if (shares_weight_and_mask(term) && grads[term.output].defined()) {
        add_weight_and_mask(term, arguments, grads[term.output], out);
      }
    }
    return out;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  std::string name() const override { return definition.node_name; }

 private:
  bool wanted(int argument) { return argument != kAbsent && task_should_compute_output(argument); }

  bool is_forward() const {
    return definition.terms.size() == 1 && definition.terms[0].own == kGrad;
  }

  // The usual backward pass: one op for all of its gradients, so that its own derivative sees them
  // together.
  void backward_of_forward(const std::vector<Tensor>& arguments, const Tensor& grad,
                           variable_list& out) {
    enum { kX, kW, kM, kB };
    Slots slots = slots_of(definition.terms[0], arguments);
    slots[kGrad] = grad;
    if (!wanted(kW)) {
      if (wanted(kX)) out[kX] = partial(kInput, slots, Tensor(), geo);
      if (wanted(kM)) out[kM] = partial(kMask, slots, Tensor(), geo);
      if (wanted(kB)) out[kB] = sum_of_pixels(grad);
      return;
    }
    auto [x_grad, weight_grad, bias_grad] =
        backward_op().call(grad, slots[kInput], slots[kWeight], or_none(slots[kMask]), wanted(kX),
                           wanted(kM), wanted(kB), geo.stride, geo.padding);
    if (wanted(kX)) out[kX] = x_grad;
    if (wanted(kB)) out[kB] = bias_grad;
    if (wanted(kM)) {
      divide_between(weight_grad, slots, out[kW], out[kM]);
    } else {
      out[kW] = weight_grad;
    }
  }

  // Weight and mask enter as their product: one dense gradient of it gives both of theirs.
  static void divide_between(const Tensor& dense, const Slots& slots, Tensor& weight,
                             Tensor& mask) {
    weight = dense * over_taps(slots[kMask]);
    mask = (dense * slots[kWeight]).sum({-2, -1});
  }

  bool shares_weight_and_mask(const Term& term) {
    return wanted(term.argument[kWeight]) && wanted(term.argument[kMask]);
  }

  void add_weight_and_mask(const Term& term, const std::vector<Tensor>& arguments,
                           const Tensor& grad, variable_list& out) {
    Slots slots = slots_of(term, arguments), unmasked = slots;
    unmasked[term.own] = grad;
    unmasked[kMask] = Tensor();
    Tensor weight, mask;
    divide_between(partial(kWeight, unmasked, Tensor(), geo), slots, weight, mask);
    for (const auto& [slot, gradient] : {std::pair(kWeight, weight), std::pair(kMask, mask)}) {
      Tensor& sum = out[term.argument[slot]];
      sum = add_defined(sum, gradient);
    }
  }

  // All but what add_weight_and_mask adds.
  Tensor gradient_of(int argument, const std::vector<Tensor>& arguments,
                     const variable_list& grads) {
    if (argument == definition.bias) {
      return grads[0].defined() ? sum_of_pixels(grads[0]) : Tensor();
    }
    Slot slot = kGrad;
    std::vector<Slots> terms;
    for (const Term& term : definition.terms) {
      if (!term.reads(argument) || !grads[term.output].defined()) continue;
      slot = static_cast<Slot>(std::find(term.argument.begin(), term.argument.end(), argument) -
                               term.argument.begin());
      if (shares_weight_and_mask(term) && (slot == kWeight || slot == kMask)) continue;
      terms.push_back(slots_of(term, arguments));
      terms.back()[term.own] = grads[term.output];
    }
    Tensor bias;
    if (argument == 0 && definition.bias_output != kAbsent) bias = grads[definition.bias_output];
    if (terms.empty() && bias.defined()) {
      return over_pixels(bias).expand_symint(arguments[0].sym_sizes());
    }
    return sum_of_partials(slot, terms, bias, geo);
  }
};

// ---- forward mode ------------------------------------------------------------------------------

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

// ---- the kernels of the Autograd key -----------------------------------------------------------

std::vector<Tensor> outputs_of(Tensor value) { return {std::move(value)}; }

std::vector<Tensor> outputs_of(BackwardResult value) {
  return {std::get<0>(value), std::get<1>(value), std::get<2>(value)};
}

template <class Redispatch>
std::vector<Tensor> with_autograd(const Definition& definition,
                                  const std::vector<Tensor>& arguments, const Geometry& geo,
                                  Redispatch&& redispatch) {
  auto node = decltype(make_node<FamilyBackward>()){};
  const bool recorded = at::GradMode::is_enabled() &&
                        std::any_of(arguments.begin(), arguments.end(), [](const Tensor& t) {
                          return t.defined() && t.requires_grad();
                        });
  if (recorded) {
    node = make_node<FamilyBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(arguments));
    node->definition = definition;
    for (const auto& argument : arguments) {
      node->saved.emplace_back(argument, /*is_output=*/false);
    }
    node->geo = geo;
  }
  auto outputs = outputs_of([&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return redispatch();
  }());
  if (node) torch::autograd::set_history(outputs, node);
  for (size_t k = 0; k < outputs.size(); ++k) {
    const auto dot = tangent(definition, static_cast<int>(k), arguments, outputs[k], geo);
    if (dot.defined()) outputs[k]._set_fw_grad(dot, /*level=*/0, /*is_inplace_op=*/false);
  }
  return outputs;
}

std::vector<c10::SymInt> last_two(const Tensor& t) {
  const auto sizes = t.sym_sizes();
  return {sizes[sizes.size() - 2], sizes[sizes.size() - 1]};
}

using Keys = c10::DispatchKeySet;

Keys below_autograd(Keys keys) { return keys & c10::after_autograd_keyset; }

Tensor masked_conv(Keys keys, const Tensor& x, const Tensor& weight, const OptionalTensor& mask,
                   const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding) {
  const Geometry geo{last_two(x), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd(
      forward_definition(), {x, weight, or_undefined(mask), or_undefined(bias)}, geo, [&] {
        return conv_op().redispatch(below_autograd(keys), x, weight, mask, bias, stride, padding);
      })[0];
}

Tensor masked_conv_input_grad(Keys keys, const Tensor& grad, const Tensor& weight,
                              const OptionalTensor& mask, SymIntArrayRef input_size,
                              IntArrayRef stride, IntArrayRef padding) {
  const Geometry geo{input_size.vec(), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd(input_grad_definition(), {grad, weight, or_undefined(mask)}, geo, [&] {
    return input_grad_op().redispatch(below_autograd(keys), grad, weight, mask, input_size, stride,
                                      padding);
  })[0];
}

Tensor masked_conv_weight_grad(Keys keys, const Tensor& grad, const Tensor& x,
                               const OptionalTensor& mask, SymIntArrayRef kernel_size,
                               IntArrayRef stride, IntArrayRef padding) {
  const Geometry geo{last_two(x), kernel_size.vec(), stride.vec(), padding.vec()};
  return with_autograd(weight_grad_definition(), {grad, x, or_undefined(mask)}, geo, [&] {
    return weight_grad_op().redispatch(below_autograd(keys), grad, x, mask, kernel_size, stride,
                                       padding);
  })[0];
}

Tensor masked_conv_mask_grad(Keys keys, const Tensor& grad, const Tensor& x, const Tensor& weight,
                             IntArrayRef stride, IntArrayRef padding) {
  const Geometry geo{last_two(x), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd(mask_grad_definition(), {grad, x, weight}, geo, [&] {
    return mask_grad_op().redispatch(below_autograd(keys), grad, x, weight, stride, padding);
  })[0];
}

Tensor masked_conv_pair(Keys keys, const Tensor& x1, const Tensor& weight1,
                        const OptionalTensor& mask1, const Tensor& x2, const Tensor& weight2,
                        const OptionalTensor& mask2, const OptionalTensor& bias, IntArrayRef stride,
                        IntArrayRef padding) {
  const Geometry geo{last_two(x1), last_two(weight1), stride.vec(), padding.vec()};
  return with_autograd(
      pair_definition(),
      {x1, weight1, or_undefined(mask1), x2, weight2, or_undefined(mask2), or_undefined(bias)}, geo,
      [&] {
        return conv_pair_op().redispatch(below_autograd(keys), x1, weight1, mask1, x2, weight2,
                                         mask2, bias, stride, padding);
      })[0];
}

Tensor masked_conv_input_grad_pair(Keys keys, const Tensor& grad1, const Tensor& weight1,
                                   const OptionalTensor& mask1, const Tensor& grad2,
                                   const Tensor& weight2, const OptionalTensor& mask2,
                                   SymIntArrayRef input_size, IntArrayRef stride,
                                   IntArrayRef padding) {
  const Geometry geo{input_size.vec(), last_two(weight1), stride.vec(), padding.vec()};
  return with_autograd(
      input_grad_pair_definition(),
      {grad1, weight1, or_undefined(mask1), grad2, weight2, or_undefined(mask2)}, geo, [&] {
        return input_grad_pair_op().redispatch(below_autograd(keys), grad1, weight1, mask1, grad2,
                                               weight2, mask2, input_size, stride, padding);
      })[0];
}

Tensor masked_conv_weight_grad_pair(Keys keys, const Tensor& grad1, const Tensor& x1,
                                    const Tensor& grad2, const Tensor& x2,
                                    const OptionalTensor& mask, SymIntArrayRef kernel_size,
                                    IntArrayRef stride, IntArrayRef padding) {
  const Geometry geo{last_two(x1), kernel_size.vec(), stride.vec(), padding.vec()};
  return with_autograd(
      weight_grad_pair_definition(), {grad1, x1, grad2, x2, or_undefined(mask)}, geo, [&] {
        return weight_grad_pair_op().redispatch(below_autograd(keys), grad1, x1, grad2, x2, mask,
                                                kernel_size, stride, padding);
      })[0];
}

BackwardResult masked_conv_backward(Keys keys, const Tensor& grad, const Tensor& x,
                                    const Tensor& weight, const OptionalTensor& mask,
                                    bool input_wanted, bool dense, bool bias_wanted,
                                    IntArrayRef stride, IntArrayRef padding) {
  const Geometry geo{last_two(x), last_two(weight), stride.vec(), padding.vec()};
  const auto outputs = with_autograd(backward_definition(input_wanted, dense, bias_wanted),
                                     {grad, x, weight, or_undefined(mask)}, geo, [&] {
                                       return backward_op().redispatch(
                                           below_autograd(keys), grad, x, weight, mask,
                                           input_wanted, dense, bias_wanted, stride, padding);
                                     });
  return {outputs[0], outputs[1], outputs[2]};
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("masked_conv", metasparse::masked_conv);
  m.impl("masked_conv_input_grad", metasparse::masked_conv_input_grad);
  m.impl("masked_conv_weight_grad", metasparse::masked_conv_weight_grad);
  m.impl("masked_conv_mask_grad", metasparse::masked_conv_mask_grad);
  m.impl("masked_conv_pair", metasparse::masked_conv_pair);
  m.impl("masked_conv_input_grad_pair", metasparse::masked_conv_input_grad_pair);
  m.impl("masked_conv_weight_grad_pair", metasparse::masked_conv_weight_grad_pair);
  m.impl("masked_conv_backward", metasparse::masked_conv_backward);
}
