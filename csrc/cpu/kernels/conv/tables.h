// The tables of function pointers that the convolution's kernels export, one per instruction set.
#pragma once

#include "../../runtime/isa.h"
#include "args.h"

namespace metasparse::cpu {

// Blocks of up to kMaxVectors registers; tables are indexed by the number of registers.
inline constexpr int kMaxVectors = 8;

// SpMM and SDDMM over the active kernels.
template <class T>
struct SparseKernels {
  void (*spmm[kMaxVectors + 1])(const SpmmArgs<T>&);
  void (*sddmm[kMaxVectors + 1])(const SddmmArgs<T>&);
};

// SpMM and SDDMM over all kernels: `sddmm` by registers, `spmm` by tiles, of which one register has
// kMaxTiles at most.
inline constexpr int kMaxTiles = 16;

template <class T>
struct DenseKernels {
  void (*sddmm[kMaxVectors + 1])(const DenseSddmmArgs<T>&);
  void (*spmm[kMaxTiles + 1])(const DenseSpmmArgs<T>&);
};

// Data movement of direct convolution.
template <class T>
struct Im2colKernels {
  // Where a block's pixels read: equally many windows for each tap, whose number is returned;
  // `out` has room for one per tap, run and register.
  int64_t (*windows)(const TileBlock&, const TapGrid&, const Images<const T>&, LaneWindow* out);
  // v[channel * taps + tap][lanes] from the images; a register more may be written.
  void (*im2col)(const TapGrid&, const Images<const T>&, const LaneWindow* windows, int64_t per_tap,
                 const Repeats&, int64_t width, T* v);
  // channels [0, channels) of m[channel][lanes] + bias to the images, whose data points at the
  // first channel wanted and whose channel count is the images' own.
  void (*output)(const TileBlock&, const PixelGrid&, const T* m, const T* bias, int64_t channels,
                 const Images<T>&, LaneRange* ranges);
};

// Few input channels, over one strip of pixels.
template <class T>
struct FewChannelsKernels {
  void (*forward)(const FewChannelsForwardArgs<T>&);
  void (*weight_grad)(const FewChannelsWeightGradArgs<T>&);
  FewChannelsSums sums;
};

// The transforms of one tile size M; planes of V, M and D are numbered row * (M + 2) + column of
// the transformed tile. `scratch` points to as many bytes as `scratch_bytes` says, 64-byte aligned.
template <class T>
struct WinogradKernels {
  int64_t (*scratch_bytes)(const TileBlock&);
  // Output (r, c) reads the input from row r + row_shift, column c + column_shift on.
  void (*input_transform)(const TileBlock&, const Images<const T>&, int32_t row_shift,
                          int32_t column_shift, T* v, int64_t point_stride, void* scratch);
  // As Im2colKernels::output.
  void (*output_transform)(const TileBlock&, const T* m, int64_t accumulator_stride, const T* bias,
                           int64_t channels, const Images<T>&, void* scratch);
  void (*output_transform_adjoint)(const TileBlock&, const Images<const T>& grad, T* d,
                                   int64_t accumulator_stride, void* scratch);
  // As WeightTransform; `flipped` reads the kernels rotated by half a turn.
  void (*weight_transform)(const WeightEntries&, const T* kernels, const T* mask, bool flipped,
                           T* u, int64_t stride);
  void (*weight_transform_backward)(const WeightEntries&, const T* du, int64_t stride,
                                    const T* mask, T* grad_kernels);
};

// The transforms of polyphase convolution at stride 2, one tile size M; planes of V are numbered
// row point * (2 M + 1) + column point. The input gradient has two passes, of the odd and of the
// even input rows. The weight transforms are WinogradKernels' own kind.
template <class T>
struct PolyphaseKernels {
  int64_t (*scratch_bytes)(const TileBlock&);
  void (*input_transform)(const TileBlock&, const Images<const T>&, T* v, int64_t point_stride,
                          void* scratch);
  void (*output_transform)(const TileBlock&, const T* m, int64_t accumulator_stride, const T* bias,
                           int64_t channels, const Images<T>&, void* scratch);
  void (*output_transform_adjoint)(const TileBlock&, const Images<const T>& grad, T* d,
                                   int64_t accumulator_stride, void* scratch);
  void (*grad_input_transform[2])(const TileBlock&, const Images<const T>& grad, T* v,
                                  int64_t point_stride, void* scratch);
  void (*grad_output_transform[2])(const TileBlock&, const T* m, int64_t accumulator_stride,
                                   int64_t channels, const Images<T>&, void* scratch);
  void (*weight_transform)(const WeightEntries&, const T* kernels, const T* mask, bool flipped,
                           T* u, int64_t stride);
  void (*weight_transform_backward)(const WeightEntries&, const T* du, int64_t stride,
                                    const T* mask, T* grad_kernels);
};

// All of them.
template <class T>
struct ConvKernels {
  int lanes;  // of a register
  const SparseKernels<T>& sparse;
  const DenseKernels<T>& dense;
  const Im2colKernels<T>& im2col;
  const FewChannelsKernels<T>& few_channels;
  const WinogradKernels<T>& (*winograd)(int tile);    // 2 .. 5
  const PolyphaseKernels<T>& (*polyphase)(int tile);  // 2, 3
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(template <class T> const ConvKernels<T>& conv_kernels();)
