// Autograd of the masked convolution family.
//
// All four ops are partial derivatives of one form that is linear in each of its four slots,
//
//     L(g, x, w, m) = <g, conv(x, w * m)>,
//
// namely  dL/dg = masked_conv,  dL/dx = masked_conv_input_grad,  dL/dw = masked_conv_weight_grad
// and dL/dm = masked_conv_mask_grad. The derivative of one of them, contracted with an incoming
// gradient, is L with that gradient in the op's own slot, differentiated in another slot: again one
// of the four. So one Node template serves the family, and double backward or forward mode needs no
// further kernel.
#include <array>

#include "node.h"

namespace metasparse {
namespace {

using at::Tensor;
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

using ConvSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                             const OptionalTensor&, at::IntArrayRef, at::IntArrayRef);
using PartialSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&,
                                c10::SymIntArrayRef, at::IntArrayRef, at::IntArrayRef);
using MaskGradSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, at::IntArrayRef,
                                 at::IntArrayRef);

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

Tensor over_taps(const Tensor& mask) { return mask.unsqueeze(-1).unsqueeze(-1); }

// dL/d(slot) at the given slots; the entry of `slot` itself is not read.
Tensor partial(Slot slot, const Slots& s, const Geometry& geo) {
  const auto mask = or_none(s[kMask]);
  switch (slot) {
    case kGrad:
      return conv_op().call(s[kInput], s[kWeight], mask, std::nullopt, geo.stride, geo.padding);
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

// Weight and mask enter as their product: one dense weight gradient gives both of theirs.
void partial_weight_and_mask(const Slots& s, const Geometry& geo, Tensor& weight, Tensor& mask) {
  const auto dense = weight_grad_op().call(s[kGrad], s[kInput], std::nullopt, geo.kernel_size,
                                           geo.stride, geo.padding);
  weight = dense * over_taps(s[kMask]);
  mask = (dense * s[kWeight]).sum({-2, -1});
}

template <Slot own>
struct MaskedConvBackward : Node {
  static constexpr int kBiasEdge = 4;
  std::array<SavedVariable, 4> saved;
  Geometry geo;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(5);
    const Tensor& grad = grads[0];
    if (!grad.defined()) return out;
    Slots s;
    for (int slot = 0; slot < 4; ++slot) s[slot] = slot == own ? grad : saved[slot].unpack();
    const auto wanted = [&](int edge) { return edge != own && task_should_compute_output(edge); };
    const bool weight_and_mask = wanted(kWeight) && wanted(kMask);
    if (weight_and_mask) partial_weight_and_mask(s, geo, out[kWeight], out[kMask]);
    for (const Slot slot : {kGrad, kInput, kWeight, kMask}) {
      const bool done = weight_and_mask && (slot == kWeight || slot == kMask);
      if (wanted(slot) && !done) out[slot] = partial(slot, s, geo);
    }
    if (wanted(kBiasEdge)) out[kBiasEdge] = grad.sum({1, 3, 4});
    return out;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  std::string name() const override {
    constexpr const char* names[] = {"MaskedConvBackward", "MaskedConvInputGradBackward",
                                     "MaskedConvWeightGradBackward", "MaskedConvMaskGradBackward"};
    return names[own];
  }
};

// Product rule: the sum over slots of the op with that slot replaced by its tangent.
Tensor tangent(Slot own, const Slots& slots, const Tensor& bias, const Geometry& geo,
               const Tensor& out) {
  Slots primal, dot;
  for (int slot = 0; slot < 4; ++slot) {
    primal[slot] = primal_of(slots[slot]);
    dot[slot] = tangent_of(slots[slot]);
  }
  Tensor sum;
  for (int slot = 0; slot < 4; ++slot) {
    if (slot == own || !dot[slot].defined()) continue;
    Slots replaced = primal;
    replaced[slot] = dot[slot];
    sum = add_defined(sum, partial(own, replaced, geo));
  }
  const auto bias_dot = tangent_of(bias);
  if (!bias_dot.defined()) return sum;
  const auto spread = over_taps(bias_dot).unsqueeze(1);
  return sum.defined() ? sum + spread : spread.expand_symint(out.sym_sizes()).clone();
}

template <Slot own, class Redispatch>
Tensor with_autograd(const Slots& slots, const Tensor& bias, Geometry geo,
                     Redispatch&& redispatch) {
  auto node = decltype(make_node<MaskedConvBackward<own>>()){};
  const auto& [g, x, w, m] = slots;
  if (torch::autograd::compute_requires_grad(g, x, w, m, bias)) {
    node = make_node<MaskedConvBackward<own>>();
    node->set_next_edges(torch::autograd::collect_next_edges(g, x, w, m, bias));
    for (int slot = 0; slot < 4; ++slot) {
      node->saved[slot] = SavedVariable(slots[slot], /*is_output=*/false);
    }
    node->geo = geo;
  }
  auto out = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return redispatch();
  }();
  if (node) torch::autograd::set_history(out, node);
  const auto dot = tangent(own, slots, bias, geo, out);
  if (dot.defined()) out._set_fw_grad(dot, /*level=*/0, /*is_inplace_op=*/false);
  return out;
}

std::vector<c10::SymInt> last_two(const Tensor& t) {
  const auto sizes = t.sym_sizes();
  return {sizes[sizes.size() - 2], sizes[sizes.size() - 1]};
}

Tensor masked_conv(c10::DispatchKeySet keys, const Tensor& x, const Tensor& weight,
                   const OptionalTensor& mask, const OptionalTensor& bias, at::IntArrayRef stride,
                   at::IntArrayRef padding) {
  const Geometry geo{last_two(x), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd<kGrad>({Tensor(), x, weight, or_undefined(mask)}, or_undefined(bias), geo,
                              [&] {
                                return conv_op().redispatch(keys & c10::after_autograd_keyset, x,
                                                            weight, mask, bias, stride, padding);
                              });
}

Tensor masked_conv_input_grad(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& weight,
                              const OptionalTensor& mask, c10::SymIntArrayRef input_size,
                              at::IntArrayRef stride, at::IntArrayRef padding) {
  const Geometry geo{input_size.vec(), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd<kInput>({grad, Tensor(), weight, or_undefined(mask)}, Tensor(), geo, [&] {
    return input_grad_op().redispatch(keys & c10::after_autograd_keyset, grad, weight, mask,
                                      input_size, stride, padding);
  });
}

Tensor masked_conv_weight_grad(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& x,
                               const OptionalTensor& mask, c10::SymIntArrayRef kernel_size,
                               at::IntArrayRef stride, at::IntArrayRef padding) {
  const Geometry geo{last_two(x), kernel_size.vec(), stride.vec(), padding.vec()};
  return with_autograd<kWeight>({grad, x, Tensor(), or_undefined(mask)}, Tensor(), geo, [&] {
    return weight_grad_op().redispatch(keys & c10::after_autograd_keyset, grad, x, mask,
                                       kernel_size, stride, padding);
  });
}

Tensor masked_conv_mask_grad(c10::DispatchKeySet keys, const Tensor& grad, const Tensor& x,
                             const Tensor& weight, at::IntArrayRef stride,
                             at::IntArrayRef padding) {
  const Geometry geo{last_two(x), last_two(weight), stride.vec(), padding.vec()};
  return with_autograd<kMask>({grad, x, weight, Tensor()}, Tensor(), geo, [&] {
    return mask_grad_op().redispatch(keys & c10::after_autograd_keyset, grad, x, weight, stride,
                                     padding);
  });
}

}  // namespace
}  // namespace metasparse

TORCH_LIBRARY_IMPL(metasparse, Autograd, m) {
  m.impl("masked_conv", metasparse::masked_conv);
  m.impl("masked_conv_input_grad", metasparse::masked_conv_input_grad);
  m.impl("masked_conv_weight_grad", metasparse::masked_conv_weight_grad);
  m.impl("masked_conv_mask_grad", metasparse::masked_conv_mask_grad);
}
