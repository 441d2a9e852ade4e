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
};

// `dense` by registers, `outer` by tiles, of which one register has kMaxTiles at most.
inline constexpr int kMaxTiles = 16;

template <class T>
struct DenseKernels {
  void (*dense[kMaxVectors + 1])(const DenseStep<T>&);
  void (*outer[kMaxTiles + 1])(const OuterStep<T>&);
};

template <class T>
struct DirectKernels {
  // Where a block's pixels read: equally many windows for each tap, whose number is returned;
  // `out` has room for one per tap, run and register.
  int64_t (*windows)(const TileBlock&, const TapGrid&, const Images<const T>&, LaneWindow* out);
  // v[channel * taps + tap][lanes] from the images; a register more may be written.
  void (*gather)(const TapGrid&, const Images<const T>&, const LaneWindow* windows, int64_t per_tap,
                 const Repeats&, int64_t width, T* v);
  // channels [0, channels) of m[channel][lanes] + bias to the images, whose data points at the
  // first channel wanted and whose channel count is the images' own.
  void (*drain)(const TileBlock&, const PixelGrid&, const T* m, const T* bias, int64_t channels,
                const Images<T>&, LaneRange* ranges);
};

// Few input channels: `product` and `sampled` over one strip.
template <class T>
struct NarrowKernels {
  int lanes;
  void (*product)(const NarrowStep<T>&);
  void (*sampled)(const NarrowSampledStep<T>&);
  NarrowSums sums;
};

// The transforms of one tile size M; planes of V, M and D are numbered row * (M + 2) + column of
// the transformed tile. `scratch` points to as many bytes as `scratch_bytes` says, 64-byte aligned.
template <class T>
struct WinogradKernels {
  int64_t (*scratch_bytes)(const TileBlock&);
  // Output (r, c) reads the input from row r + row_shift, column c + column_shift on.
  void (*input)(const TileBlock&, const Images<const T>&, int32_t row_shift, int32_t column_shift,
                T* v, int64_t point_stride, void* scratch);
  // As DirectKernels::drain.
  void (*output)(const TileBlock&, const T* m, int64_t column_stride, const T* bias,
                 int64_t channels, const Images<T>&, void* scratch);
  void (*adjoint)(const TileBlock&, const Images<const T>& grad, T* d, int64_t column_stride,
                  void* scratch);
  // As WeightCode; `flipped` reads the kernels rotated by half a turn.
  void (*encode)(const WeightEntries&, const T* kernels, const T* mask, bool flipped, T* u,
                 int64_t stride);
  void (*decode_adjoint)(const WeightEntries&, const T* du, int64_t stride, const T* mask,
                         T* grad_kernels);
};

// The transforms of the polyphase scheme of stride 2, one tile size M; planes of V are numbered
// row point * (2 M + 1) + column point. The input gradient has two passes, of the odd and of the
// even input rows. encode and decode_adjoint are WinogradKernels' own kind.
template <class T>
struct PolyphaseKernels {
  int64_t (*scratch_bytes)(const TileBlock&);
  void (*input)(const TileBlock&, const Images<const T>&, T* v, int64_t point_stride,
                void* scratch);
  void (*output)(const TileBlock&, const T* m, int64_t column_stride, const T* bias,
                 int64_t channels, const Images<T>&, void* scratch);
  void (*adjoint)(const TileBlock&, const Images<const T>& grad, T* d, int64_t column_stride,
                  void* scratch);
  void (*grad_input[2])(const TileBlock&, const Images<const T>& grad, T* v, int64_t point_stride,
                        void* scratch);
  void (*grad_output[2])(const TileBlock&, const T* m, int64_t column_stride, int64_t channels,
                         const Images<T>&, void* scratch);
  void (*encode)(const WeightEntries&, const T* kernels, const T* mask, bool flipped, T* u,
                 int64_t stride);
  void (*decode_adjoint)(const WeightEntries&, const T* du, int64_t stride, const T* mask,
                         T* grad_kernels);
};

namespace baseline {
template <class T>
const ProductKernels<T>& product_kernels();
template <class T>
const DenseKernels<T>& dense_kernels();
template <class T>
const DirectKernels<T>& direct_kernels();
template <class T>
const NarrowKernels<T>& narrow_kernels();
template <class T>
const WinogradKernels<T>& winograd_kernels(int tile);
template <class T>
const PolyphaseKernels<T>& polyphase_kernels(int tile);
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
template <class T>
const ProductKernels<T>& product_kernels();
template <class T>
const DenseKernels<T>& dense_kernels();
template <class T>
const DirectKernels<T>& direct_kernels();
template <class T>
const NarrowKernels<T>& narrow_kernels();
template <class T>
const WinogradKernels<T>& winograd_kernels(int tile);
template <class T>
const PolyphaseKernels<T>& polyphase_kernels(int tile);
}  // namespace avx2

namespace avx512 {
template <class T>
const ProductKernels<T>& product_kernels();
template <class T>
const DenseKernels<T>& dense_kernels();
template <class T>
const DirectKernels<T>& direct_kernels();
template <class T>
const NarrowKernels<T>& narrow_kernels();
template <class T>
const WinogradKernels<T>& winograd_kernels(int tile);
template <class T>
const PolyphaseKernels<T>& polyphase_kernels(int tile);
}  // namespace avx512
#endif

}  // namespace metasparse::cpu
