#pragma once
// Depthwise convolutions, one plane of one image at a time.
//
// A plane is copied into a frame, among zeros, from which every tap of every output reads without a
// test. Columns of a frame are stored in `phases` rows: column j is number j / phases of phase
// j % phases, so that outputs whose windows lie `phases` columns apart read neighbours.
#include <cstdint>

#include "../runtime/isa.h"

namespace metasparse::cpu {

struct Frame {
  int64_t height, width;  // of the plane
  int64_t top, left;      // where its first pixel lies; below zero it is cut off
  int64_t rows, columns;
  int64_t phases, pitch;  // numbers from one phase of a row to the next; zeros and slack behind it

  int64_t row_size() const { return phases * pitch; }
  int64_t size() const { return rows * row_size(); }
};

// What is read of a frame for a plane of outputs.
struct Taps {
  int64_t rows, columns;   // of outputs
  int64_t row_step;        // numbers of the frame from one row of outputs to the next
  int64_t count;           // taps of a kernel
  const int64_t* offsets;  // (count,) of each from an output's place
  int64_t shared_height;   // of the kernel, if rows of outputs are one row apart, else 0
};

// What is read of a frame for the input gradient of a strided convolution. Its rows and columns
// fall into as many classes as the strides; those of one see the same taps, one pixel of the frame
// apart.
struct Classes {
  int64_t rows, columns;       // of the gradient
  int64_t stride_y, stride_x;  // row r is number r / stride_y of its class, r % stride_y
  int64_t row_step;            // numbers of a row of the frame
  const int64_t* first;        // where the taps of each class begin: (y, x), x the fast axis
  const int64_t* offsets;      // of each tap from the place of a number in its class
};

template <class T>
struct DepthwiseKernels {
  // Copies a plane into a frame of zeros, which stay around it for the next one.
  void (*fill)(const Frame& frame, const T* plane, T* to);
  // outputs (rows, columns) = the sum over taps of weight times what each sees
  void (*correlate)(const Taps& taps, const T* frame, const T* weight, T* outputs);
  // The same for the classes of a gradient; weights are in the order of their taps.
  void (*correlate_classes)(const Classes& classes, const T* frame, const T* weight, T* outputs);
  // sums (count, lanes) += grad (rows, columns) times what each tap sees
  void (*accumulate)(const Taps& taps, const T* frame, const T* grad, T* sums);
  int64_t lanes;
};

struct DepthwiseTable {
  DepthwiseKernels<float> f32;
  DepthwiseKernels<double> f64;
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(extern const DepthwiseTable depthwise_conv;)
