// The tables of function pointers that the convolution kernels export, one set per instruction set.
#pragma once

#include "../conv_types.h"

namespace metasparse::cpu {

// Blocks of up to kMaxVectors registers; tables are indexed by the number of registers.
inline constexpr int kMaxVectors = 8;

template <class T>
struct ProductKernels {
  int lanes;
  void (*product[kMaxVectors + 1])(const ProductStep<T>&);
  void (*sampled[kMaxVectors + 1])(const SampledStep<T>&);
  void (*dense[kMaxVectors + 1])(const DenseStep<T>&);
};

template <class T>
struct DirectKernels {
  // v[channel * taps + tap][lanes] from the images; `windows` has room for one entry per tap, run
  // and register.
  void (*gather)(const TileBlock&, const TapGrid&, const Images<const T>&, LaneWindow* windows,
                 T* v);
  // channels [0, channels) of m[channel][lanes] + bias to the images, whose data points at the
  // first channel wanted and whose channel count is the images' own.
  void (*drain)(const TileBlock&, const PixelGrid&, const T* m, const T* bias, int64_t channels,
                const Images<T>&, LaneRange* ranges);
};

namespace baseline {
template <class T>
const ProductKernels<T>& product_kernels();
template <class T>
const DirectKernels<T>& direct_kernels();
}  // namespace baseline

namespace avx2 {
template <class T>
const ProductKernels<T>& product_kernels();
template <class T>
const DirectKernels<T>& direct_kernels();
}  // namespace avx2

namespace avx512 {
template <class T>
const ProductKernels<T>& product_kernels();
template <class T>
const DirectKernels<T>& direct_kernels();
}  // namespace avx512

}  // namespace metasparse::cpu
