// Autograd of depthwise convolutions with a task axis. Like the masked convolution
// (masked_conv.cpp), they derive from a form that is linear in each slot, L(g, x, w) = <g, x * w>:
// each op is its derivative in one slot, so three ops are closed under differentiation, to any
// order and in forward mode.
#include <array>
#include <vector>

#include "node.h"

namespace metasparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using torch::autograd::variable_list;
using Keys = c10::DispatchKeySet;

const auto& conv_op() {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, IntArrayRef, IntArrayRef)>(
      "metasparse::depthwise_conv");
  return op;
}

using PartialSignature = Tensor(const Tensor&, const Tensor&, SymIntArrayRef, IntArrayRef,
                                IntArrayRef);

const auto& input_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::depthwise_conv_input_grad");
  return op;
}

const auto& weight_grad_op() {
  static const auto op = find_op<PartialSignature>("metasparse::depthwise_conv_weight_grad");
  return op;
}

enum Slot { kGrad, kInput, kWeight };
using Slots = std::array<Tensor, 3>;

struct Geometry {
  std::vector<c10::SymInt> input_size, kernel_size;
  std::vector<int64_t> stride, padding;
};

// dL/d(slot), of the other two.
Tensor partial(Slot slot, const Slots& s, const Geometry& geo) {
  switch (slot) {
    case kGrad:
      return conv_op().call(s[kInput], s[kWeight], geo.stride, geo.padding);
    case kInput:
      return input_grad_op().call(s[kGrad], s[kWeight], geo.input_size, geo.stride, geo.padding);
    default:
      return weight_grad_op().call(s[kGrad], s[kInput], geo.kernel_size, geo.stride, geo.padding);
  }
}

// Of dL/d(own); saves what is in the two other slots.
struct DepthwiseConvBackward : SavingNode {
  Slot own = kGrad;
  std::array<Slot, 2> others{};
  Geometry geo;

  variable_list gradients(const variable_list& grads) override {
    variable_list out(2);
    if (!grads[0].defined()) return out;
    Slots slots;
    slots[own] = grads[0];
    for (size_t k = 0; k < 2; ++k) slots[others[k]] = value(k);
    for (size_t k = 0; k < 2; ++k) {
      if (task_should_compute_output(k)) out[k] = partial(others[k], slots, geo);
    }
    return out;
  }
  std::string name() const override { return "DepthwiseConvBackward"; }
};

// The derivative of a product in the direction of its operands' tangents.
Tensor tangent_of_partial(Slot own, std::array<Slot, 2> others, const Tensor& first,
                          const Tensor& second, const Geometry& geo) {
  Slots slots;
  Tensor sum;
  if (const Tensor dot = tangent_of(first); dot.defined()) {
    slots[others[0]] = dot;
    slots[others[1]] = primal_of(second);
    sum = partial(own, slots, geo);
  }
  if (const Tensor dot = tangent_of(second); dot.defined()) {
    slots[others[0]] = primal_of(first);
    slots[others[1]] = dot;
    sum = add_defined(sum, partial(own, slots, geo));
  }
  return sum;
}

template <class Redispatch>
Tensor with_autograd(Slot own, std::array<Slot, 2> others, const Tensor& first,
                     const Tensor& second, const Geometry& geo, Redispatch&& redispatch) {
  const auto node = node_of<DepthwiseConvBackward>(first, second);
  Tensor out = run_below_autograd(redispatch);
  if (node) {
    node->own = own;
    node->others = others;
    node->geo = geo;
    node->save({first, second});
    torch::autograd::set_history(out, node);
  }
  set_tangent(out, tangent_of_partial(own, others, first, second, geo));
  return out;
}

std::vector<c10::SymInt> last_two(const Tensor& t) { return t.sym_sizes().slice(3).vec(); }

Tensor depthwise_conv(Keys keys, const Tensor& x, const Tensor& weight, IntArrayRef stride,
                      IntArrayRef padding) {
  const Geometry geo{last_two(x), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd(kGrad, {kInput, kWeight}, x, weight, geo, [&] {
    return conv_op().redispatch(below_autograd(keys), x, weight, stride, padding);
  });
}

Tensor depthwise_conv_input_grad(Keys keys, const Tensor& grad, const Tensor& weight,
                                 SymIntArrayRef input_size, IntArrayRef stride,
                                 IntArrayRef padding) {
  const Geometry geo{input_size.vec(), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd(kInput, {kGrad, kWeight}, grad, weight, geo, [&] {
    return input_grad_op().redispatch(below_autograd(keys), grad, weight, input_size, stride,
                                      padding);
  });
}

Tensor depthwise_conv_weight_grad(Keys keys, const Tensor& grad, const Tensor& x,
                                  SymIntArrayRef kernel_size, IntArrayRef stride,
                                  IntArrayRef padding) {
  const Geometry geo{last_two(x), kernel_size.vec(), stride.vec(), padding.vec()};
  return with_autograd(kWeight, {kGrad, kInput}, grad, x, geo, [&] {
    return weight_grad_op().redispatch(below_autograd(keys), grad, x, kernel_size, stride, padding);
  });
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("depthwise_conv", metasparse::depthwise_conv);
  m.impl("depthwise_conv_input_grad", metasparse::depthwise_conv_input_grad);
  m.impl("depthwise_conv_weight_grad", metasparse::depthwise_conv_weight_grad);
}
