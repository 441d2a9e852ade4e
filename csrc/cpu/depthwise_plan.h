#pragma once
// How a plane is laid out in a frame (kernels/depthwise_conv.h), and where taps read. No torch.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/depthwise_conv.h"

namespace metasparse::cpu {

// One axis of a frame: what is copied into it, and what is read of it.
struct Axis {
  int64_t size;   // of the plane
  int64_t first;  // place of its first pixel
  int64_t step;   // from one window to the next
  int64_t kernel, outputs;

  int64_t extent() const { return std::max((outputs - 1) * step + kernel, first + size); }
};

inline Axis of_images(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                      int64_t outputs) {
  return {size, padding, stride, kernel, outputs};
}

// Of a convolution without strides.
inline Axis of_gradients(int64_t size, int64_t kernel, int64_t padding, int64_t inputs) {
  return {size, kernel - 1 - padding, 1, kernel, inputs};
}

// Vectors begin at any column, and one more goes behind the last pixel of a row.
inline int64_t pitch_of(int64_t columns, int64_t lanes) {
  return (columns + 3 * lanes) / lanes * lanes;
}

// A frame and what is read of it.
struct DepthwisePlan {
  DepthwisePlan(const Axis& y, const Axis& x, int64_t lanes) {
    frame = {y.size, x.size, y.first, x.first, y.extent(), x.extent(), x.step, 0};
    frame.pitch = pitch_of(frame.columns / frame.phases, lanes);
    for (int64_t ky = 0; ky < y.kernel; ++ky) {
      for (int64_t kx = 0; kx < x.kernel; ++kx) {
        offsets.push_back(ky * frame.row_size() + kx % x.step * frame.pitch + kx / x.step);
      }
    }
    taps = {y.outputs,           x.outputs,      y.step * frame.row_size(),
            y.kernel * x.kernel, offsets.data(), y.step == 1 ? y.kernel : 0};
  }
  DepthwisePlan(const DepthwisePlan&) = delete;
  DepthwisePlan& operator=(const DepthwisePlan&) = delete;

  Frame frame;
  std::vector<int64_t> offsets;
  Taps taps;
};

// One axis of a strided convolution, seen from its inputs: input i is number i / stride of its
// class. Tap k of class c sees output i / stride + (c + padding - k) / stride where that is whole.
struct StridedAxis {
  int64_t outputs, kernel, stride, padding, inputs;

  bool sees(int64_t c, int64_t k) const { return (c + padding - k) % stride == 0; }
  int64_t shift(int64_t c, int64_t k) const { return (c + padding - k) / stride; }
  // Zeros before the first output, and the places of all that is read.
  int64_t before() const {
    return kernel - 1 > padding ? (kernel - 1 - padding + stride - 1) / stride : 0;
  }
  int64_t extent() const {
    const int64_t last = (inputs - 1) / stride + (stride - 1 + padding) / stride;
    return before() + std::max(outputs, last + 1);
  }
};

// The input gradient of a strided convolution: a frame of the gradient, and its classes.
struct StridedGradientPlan {
  StridedGradientPlan(const StridedAxis& y, const StridedAxis& x, int64_t lanes) {
    frame = {y.outputs, x.outputs, y.before(), x.before(), y.extent(), x.extent(), 1, 0};
    frame.pitch = pitch_of(frame.columns, lanes);
    for (int64_t cy = 0; cy < y.stride; ++cy) {
      for (int64_t cx = 0; cx < x.stride; ++cx) {
        first.push_back(static_cast<int64_t>(order.size()));
        for (int64_t k = 0; k < y.kernel * x.kernel; ++k) {
          const int64_t ky = k / x.kernel, kx = k % x.kernel;
          if (!y.sees(cy, ky) || !x.sees(cx, kx)) continue;
          order.push_back(k);
          offsets.push_back((frame.top + y.shift(cy, ky)) * frame.pitch + frame.left +
                            x.shift(cx, kx));
        }
      }
    }
    first.push_back(static_cast<int64_t>(order.size()));
    classes = {y.inputs, x.inputs, y.stride, x.stride, frame.pitch, first.data(), offsets.data()};
  }
  StridedGradientPlan(const StridedGradientPlan&) = delete;
  StridedGradientPlan& operator=(const StridedGradientPlan&) = delete;

  Frame frame;
  std::vector<int64_t> first, offsets, order;  // order: of the taps, by class
  Classes classes;
};

}  // namespace metasparse::cpu
