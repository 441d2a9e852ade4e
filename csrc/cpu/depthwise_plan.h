#pragma once
// How a plane is laid out in a frame (kernels/depthwise_conv.h), and where taps read. No torch.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/depthwise_conv.h"

namespace metasparse::cpu {

// One axis of a frame: what is copied into it, and what is read of it.
struct Axis {
  int64_t size;    // of the plane
  int64_t first;   // place of its first pixel
  int64_t spread;  // from one pixel to the next
  int64_t step;    // from one window to the next
  int64_t kernel, outputs;

  int64_t extent() const {
    const int64_t read = (outputs - 1) * step + kernel;
    return spread == 1 ? std::max(read, first + size) : read;
  }
};

inline Axis of_images(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                      int64_t outputs) {
  return {size, padding, 1, stride, kernel, outputs};
}

inline Axis of_gradients(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                         int64_t inputs) {
  return {size, kernel - 1 - padding, stride, 1, kernel, inputs};
}

// A frame and what is read of it.
struct DepthwisePlan {
  DepthwisePlan(const Axis& y, const Axis& x, int64_t lanes) {
    frame = {y.size,   x.size,     y.first,    x.first, y.spread,
             x.spread, y.extent(), x.extent(), x.step,  0};
    // A vector may begin at any column, and one more goes behind the last pixel of a row.
    frame.pitch = (frame.columns / frame.phases + 3 * lanes) / lanes * lanes;
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

}  // namespace metasparse::cpu
