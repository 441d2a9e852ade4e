// The transforms that Winograd and polyphase convolution have in common: M to images, gradients to
// D, kernels to U, and dU to the gradients of kernels. Each is one matrix applied to the rows of a
// small square and then to its columns.
//
// An Algorithm names the matrices:
//   tile                       outputs per tile and axis
//   planes, weights            planes of M, and weights of a kernel, per axis
//   output_line(in, out)       planes -> outputs;  output_line_adjoint: its transpose
//   Weight                     the matrix from 3 taps to weights
#pragma once

#include "../transpose.h"
#include "matrix.h"
#include "tile_io.h"
#include "tile_lanes.h"

namespace metasparse::cpu::METASPARSE_ISA {

// M to images: each row of planes along its columns, then the rows of the strips.
template <class T, class Algorithm>
void output_transform(const TileBlock& block, const T* m, int64_t accumulator_stride, const T* bias,
                      int64_t channels, const Images<T>& y, void* scratch) {
  constexpr int A = Algorithm::planes, M = Algorithm::tile;
  const int64_t pitch = strip_pitch(block, M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + A * pitch};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(strips[1] + A * pitch);
  StripPiece* end = find_pieces(block, {M, M, M, 0, 0}, y, pieces);
  const auto store_channel = [&](int64_t channel) {
    const Vec<T> shift = broadcast(bias == nullptr ? T(0) : bias[channel]);
    store_strips<T, A, M>(pieces, end, strips[channel & 1], pitch, y.data + channel * y.plane(),
                          y.width, y.plane(), [&](const Vec<T>* in, Vec<T>* out) METASPARSE_BODY {
                            Algorithm::template output_line<T>(in, 1, out, 1);
                            METASPARSE_UNROLL
                            for (int r = 0; r < M; ++r) out[r] += shift;
                          });
  };
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int r = 0; r < A; ++r) {
      T* strip = strips[channel & 1] + r * pitch;
      for (int t = 0; t < block.vectors; ++t) {
        const T* in = m + (channel * block.vectors + t) * kLanes<T>;
        Vec<T> line[A], out[M];
        METASPARSE_UNROLL
        for (int c = 0; c < A; ++c) line[c] = load(in + (r * A + c) * accumulator_stride);
        Algorithm::template output_line<T>(line, 1, out, 1);
        store_tiles<T, M>(strip + t * M * kLanes<T>, out);
      }
    }
    if (channel > 0) store_channel(channel - 1);
  }
  if (channels > 0) store_channel(channels - 1);
}

// The adjoint: gradients of images to D.
template <class T, class Algorithm>
void output_transform_adjoint(const TileBlock& block, const Images<const T>& grad, T* d,
                              int64_t accumulator_stride, void* scratch) {
  constexpr int A = Algorithm::planes, M = Algorithm::tile;
  load_tile_lines<T, LineShape<M, 0>, M, A>(
      block, {M, M, M, 0, 0}, grad, scratch,
      [](const Vec<T>* in, Vec<T>* out)
          METASPARSE_BODY { Algorithm::template output_line_adjoint<T>(in, 1, out, 1); },
      [&](int64_t channel, int r, int t, const Vec<T>* y) METASPARSE_BODY {
        Vec<T> line[A];
        Algorithm::template output_line_adjoint<T>(y, 1, line, 1);
        T* out = d + r * A * accumulator_stride + (channel * block.vectors + t) * kLanes<T>;
        METASPARSE_UNROLL
        for (int c = 0; c < A; ++c) store(out + c * accumulator_stride, line[c]);
      });
}

// ---- taps --------------------------------------------------------------------------------------
//
// 3x3 kernels between memory, where the nine taps of a kernel are neighbours, and registers, where
// one vector holds the same tap of as many kernels as it has lanes.

inline constexpr int kTaps = 9;

// A kernel is cut into pieces of a register, which are transposed, and perhaps one tap more. Where
// a register is longer than a kernel, the only piece is shorter than it.
template <class T>
inline constexpr int kWholePieces = kTaps / kLanes<T>;
template <class T>
inline constexpr bool kShortPiece = kWholePieces<T> == 0;

static_assert(kShortPiece<float> || kTaps % kLanes<float> == 1);
static_assert(kShortPiece<double> || kTaps % kLanes<double> == 1);

// taps[k] = tap k of every kernel; kernel[l] points to the one of lane l.
template <class T>
METASPARSE_INLINE void load_kernels(const T* const* kernel, Vec<T>* taps) {
  constexpr int L = kLanes<T>;
  Vec<T> piece[L];
  if constexpr (kShortPiece<T>) {
    constexpr Lanes kKernel = (Lanes{1} << kTaps) - 1;
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) piece[l] = load_some(kKernel, kernel[l]);
    transpose<T>(piece);
    METASPARSE_UNROLL
    for (int k = 0; k < kTaps; ++k) taps[k] = piece[k];
  } else {
    METASPARSE_UNROLL
    for (int p = 0; p < kWholePieces<T>; ++p) {
      METASPARSE_UNROLL
      for (int l = 0; l < L; ++l) piece[l] = load_unaligned(kernel[l] + p * L);
      transpose<T>(piece);
      METASPARSE_UNROLL
      for (int k = 0; k < L; ++k) taps[p * L + k] = piece[k];
    }
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) taps[kTaps - 1][l] = kernel[l][kTaps - 1];
  }
}

// The inverse, for the first `count` lanes; nothing neighbour_halo a kernel is touched.
template <class T>
METASPARSE_INLINE void store_kernels(T* const* kernel, int count, const Vec<T>* taps) {
  constexpr int L = kLanes<T>;
  Vec<T> piece[L];
  if constexpr (kShortPiece<T>) {
    constexpr Lanes kKernel = (Lanes{1} << kTaps) - 1;
    METASPARSE_UNROLL
    for (int k = 0; k < L; ++k) piece[k] = k < kTaps ? taps[k < kTaps ? k : 0] : Vec<T>{};
    transpose<T>(piece);
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) {
      if (l < count) store_some(kKernel, kernel[l], piece[l]);
    }
  } else {
    METASPARSE_UNROLL
    for (int p = 0; p < kWholePieces<T>; ++p) {
      METASPARSE_UNROLL
      for (int k = 0; k < L; ++k) piece[k] = taps[p * L + k];
      transpose<T>(piece);
      METASPARSE_UNROLL
      for (int l = 0; l < L; ++l) {
        if (l < count) store_unaligned(kernel[l] + p * L, piece[l]);
      }
    }
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) {
      if (l < count) kernel[l][kTaps - 1] = taps[kTaps - 1][l];
    }
  }
}

// ---- weights -----------------------------------------------------------------------------------

// The kernel of entry e: the one at its index, or kernel e itself where there is none.
METASPARSE_INLINE int64_t kernel_of(const int32_t* weight_index, int64_t e) {
  return weight_index == nullptr ? e : weight_index[e];
}

// A zero removes infinities, too.
template <class T>
METASPARSE_INLINE Vec<T> times_mask(Vec<T> value, Vec<T> factor) {
  return factor != Vec<T>{} ? value * factor : Vec<T>{};
}

// A register of kernels at a time; past the end the last one is repeated.
template <class T, class Algorithm>
void weight_transform(const WeightEntries& entries, const T* kernels, const T* mask, bool flipped,
                      T* u, int64_t stride) {
  constexpr int A = Algorithm::weights, L = kLanes<T>;
  for (int64_t e = entries.begin; e < entries.end; e += L) {
    const T* kernel[L];
    Vec<T> factor{};
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) {
      const int64_t entry = e + l < entries.end ? e + l : entries.end - 1;
      const int64_t k = kernel_of(entries.weight_index, entry);
      kernel[l] = kernels + k * kTaps;
      if (mask != nullptr) factor[l] = mask[k];
    }
    Vec<T> taps[kTaps], g[kTaps], rows[A][3];
    load_kernels<T>(kernel, taps);
    METASPARSE_UNROLL
    for (int k = 0; k < kTaps; ++k) {
      g[k] = taps[flipped ? kTaps - 1 - k : k];
      if (mask != nullptr) g[k] = times_mask<T>(g[k], factor);
    }
    METASPARSE_UNROLL
    for (int c = 0; c < 3; ++c) multiply<typename Algorithm::Weight, T>(g + c, 3, &rows[0][c], 3);
    METASPARSE_UNROLL
    for (int r = 0; r < A; ++r) {
      Vec<T> out[A];
      multiply<typename Algorithm::Weight, T>(rows[r], 1, out, 1);
      METASPARSE_UNROLL
      for (int c = 0; c < A; ++c) store(u + (r * A + c) * stride + e, out[c]);
    }
  }
}

template <class T, class Algorithm>
void weight_transform_backward(const WeightEntries& entries, const T* du, int64_t stride,
                               const T* mask, T* grad_kernels) {
  constexpr int A = Algorithm::weights, L = kLanes<T>;
  using Adjoint = Transposed<typename Algorithm::Weight>;
  for (int64_t e = entries.begin; e < entries.end; e += L) {
    const int count = entries.end - e < L ? static_cast<int>(entries.end - e) : L;
    T* kernel[L];
    Vec<T> factor{};
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) {
      const int64_t k = kernel_of(entries.weight_index, l < count ? e + l : e);
      kernel[l] = grad_kernels + k * kTaps;
      if (mask != nullptr) factor[l] = mask[k];
    }
    Vec<T> rows[3][A], taps[kTaps];
    METASPARSE_UNROLL
    for (int c = 0; c < A; ++c) {
      Vec<T> column[A];
      METASPARSE_UNROLL
      for (int r = 0; r < A; ++r) column[r] = load(du + (r * A + c) * stride + e);
      multiply<Adjoint, T>(column, 1, &rows[0][c], A);
    }
    METASPARSE_UNROLL
    for (int r = 0; r < 3; ++r) multiply<Adjoint, T>(rows[r], 1, taps + 3 * r, 1);
    if (mask != nullptr) {
      METASPARSE_UNROLL
      for (int k = 0; k < kTaps; ++k) taps[k] = times_mask<T>(taps[k], factor);
    }
    store_kernels<T>(kernel, count, taps);
  }
}

}  // namespace metasparse::cpu::METASPARSE_ISA
