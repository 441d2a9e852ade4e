#include "masked_conv_node.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "masked_conv_ops.h"

namespace metasparse::conv_autograd {

using torch::autograd::variable_list;

namespace {

// Weight and mask enter as their product: one dense gradient of it gives both of theirs.
void divide_between(const Tensor& dense, const Slots& slots, Tensor& weight, Tensor& mask) {
  weight = dense * over_taps(slots[kMask]);
  mask = (dense * slots[kWeight]).sum({-2, -1});
}

Slot slot_of(const Term& term, int argument) {
  return static_cast<Slot>(std::find(term.argument.begin(), term.argument.end(), argument) -
                           term.argument.begin());
}

}  // namespace

variable_list FamilyBackward::apply(variable_list&& grads) {
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

void FamilyBackward::release_variables() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& variable : saved) variable.reset_data();
}

bool FamilyBackward::wanted(int argument) {
  return argument != kAbsent && task_should_compute_output(argument);
}

bool FamilyBackward::is_forward() const {
  return definition.terms.size() == 1 && definition.terms[0].own == kGrad;
}

bool FamilyBackward::shares_weight_and_mask(const Term& term) {
  return wanted(term.argument[kWeight]) && wanted(term.argument[kMask]);
}

void FamilyBackward::backward_of_forward(const std::vector<Tensor>& arguments, const Tensor& grad,
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

void FamilyBackward::add_weight_and_mask(const Term& term, const std::vector<Tensor>& arguments,
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

Tensor FamilyBackward::gradient_of(int argument, const std::vector<Tensor>& arguments,
                                   const variable_list& grads) {
  if (argument == definition.bias) {
    return grads[0].defined() ? sum_of_pixels(grads[0]) : Tensor();
  }
  Slot slot = kGrad;
  std::vector<Slots> terms;
  for (const Term& term : definition.terms) {
    if (!term.reads(argument) || !grads[term.output].defined()) continue;
    slot = slot_of(term, argument);
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

}  // namespace metasparse::conv_autograd
