#pragma once
// The partial derivatives of L(g, x, w, m) = <g, conv(x, w * m)>, and sums of them.
#include <ATen/ATen.h>

#include <array>
#include <vector>

namespace metasparse::conv_autograd {

using at::Tensor;

enum Slot { kGrad, kInput, kWeight, kMask };
using Slots = std::array<Tensor, 4>;

struct Geometry {
  std::vector<c10::SymInt> input_size, kernel_size;
  std::vector<int64_t> stride, padding;
};

// A mask (T, O, I) and a bias (T, O) with axes for what they are shared by.
Tensor over_taps(const Tensor& mask);
Tensor over_pixels(const Tensor& bias);

// What a bias (T, O) gets of a gradient (T, N, O, H, W).
Tensor sum_of_pixels(const Tensor& grad);

// dL/d(slot) at the given slots; the entry of `slot` itself is not read. Only masked_conv has a
// bias to add.
Tensor partial(Slot slot, const Slots& slots, const Tensor& bias, const Geometry& geo);

// The sum of dL/d(slot) over all terms, two at a time; undefined where there are none.
Tensor sum_of_partials(Slot slot, const std::vector<Slots>& terms, Tensor bias,
                       const Geometry& geo);

}  // namespace metasparse::conv_autograd
