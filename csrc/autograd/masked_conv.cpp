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
#include "masked_conv.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "../cpu/masked_weight.h"
#include "../plain.h"
#include "masked_weight.h"

namespace metasparse::conv_autograd {

using torch::autograd::variable_list;

namespace {

bool is_one_pass(const Tensor& t) {
  return is_plain(t) && t.is_cpu() && at::isFloatingType(t.scalar_type()) && !is_recorded(t) &&
         !tangent_of(t).defined();
}

// Weight and mask enter as their product: one dense gradient of it gives both of theirs.
void divide_between(const Tensor& dense, const Slots& slots, Tensor& weight, Tensor& mask) {
  if (is_one_pass(dense) && is_one_pass(slots[kWeight]) && is_one_pass(slots[kMask])) {
    std::tie(weight, mask) = cpu::masked_weight_backward(dense, slots[kWeight], slots[kMask]);
    return;
  }
  std::tie(weight, mask) = masked_weight_backward(dense, slots[kWeight], slots[kMask]);
}

Slot slot_of(const Term& term, int argument) {
  return static_cast<Slot>(std::find(term.argument.begin(), term.argument.end(), argument) -
                           term.argument.begin());
}

}  // namespace

variable_list MaskedConvNode::gradients(const variable_list& grads) {
  variable_list out(definition.arguments);
  std::vector<Tensor> arguments;
  for (size_t k = 0; k < saved.size(); ++k) arguments.push_back(value(k));
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

bool MaskedConvNode::wanted(int argument) {
  return argument != kAbsent && task_should_compute_output(argument);
}

bool MaskedConvNode::is_forward() const {
  return definition.terms.size() == 1 && definition.terms[0].own == kGrad;
}

bool MaskedConvNode::shares_weight_and_mask(const Term& term) {
  return wanted(term.argument[kWeight]) && wanted(term.argument[kMask]);
}

void MaskedConvNode::backward_of_forward(const std::vector<Tensor>& arguments, const Tensor& grad,
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

void MaskedConvNode::add_weight_and_mask(const Term& term, const std::vector<Tensor>& arguments,
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

Tensor MaskedConvNode::gradient_of(int argument, const std::vector<Tensor>& arguments,
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

// ---- the ops with a gradient --------------------------------------------------------------------

namespace {

using Keys = c10::DispatchKeySet;

std::vector<Tensor> outputs_of(Tensor value) { return {std::move(value)}; }

std::vector<Tensor> outputs_of(BackwardResult value) {
  return {std::get<0>(value), std::get<1>(value), std::get<2>(value)};
}

// A Node of the op that saves the arguments that its derivatives read, all but a bias, or none
// where no gradient is asked for.
PointerTo<MaskedConvNode> recorded(const Definition& definition,
                                   const std::vector<Tensor>& arguments, const Geometry& geo) {
  auto node = node_of<MaskedConvNode>(at::TensorList(arguments));
  if (!node) return node;
  node->definition = definition;
  node->geo = geo;
  auto read = arguments;
  if (definition.bias != kAbsent) read[definition.bias] = Tensor();
  node->save(read);
  return node;
}

template <class Redispatch>
std::vector<Tensor> with_autograd(const Definition& definition,
                                  const std::vector<Tensor>& arguments, const Geometry& geo,
                                  Redispatch&& redispatch) {
  const auto node = recorded(definition, arguments, geo);
  auto outputs = outputs_of(run_below_autograd(redispatch));
  if (node) torch::autograd::set_history(outputs, node);
  for (size_t k = 0; k < outputs.size(); ++k) {
    set_tangent(outputs[k], tangent(definition, static_cast<int>(k), arguments, outputs[k], geo));
  }
  return outputs;
}

std::vector<c10::SymInt> last_two(const Tensor& t) {
  const auto sizes = t.sym_sizes();
  return {sizes[sizes.size() - 2], sizes[sizes.size() - 1]};
}

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
}  // namespace metasparse::conv_autograd

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  using namespace metasparse::conv_autograd;
  m.impl("masked_conv", masked_conv);
  m.impl("masked_conv_input_grad", masked_conv_input_grad);
  m.impl("masked_conv_weight_grad", masked_conv_weight_grad);
  m.impl("masked_conv_mask_grad", masked_conv_mask_grad);
  m.impl("masked_conv_pair", masked_conv_pair);
  m.impl("masked_conv_input_grad_pair", masked_conv_input_grad_pair);
  m.impl("masked_conv_weight_grad_pair", masked_conv_weight_grad_pair);
  m.impl("masked_conv_backward", masked_conv_backward);
}
