#include "masked_conv_partials.h"

#include "masked_conv_ops.h"
#include "node.h"

namespace metasparse::conv_autograd {

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

}  // namespace metasparse::conv_autograd
