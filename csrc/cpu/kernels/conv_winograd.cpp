// The transforms of Winograd convolution, 3x3 kernels at stride 1, tiles of M x M outputs.
//
// With V = B' d B (the M + 2 squared inputs of a tile) and U = G g G', the outputs of a tile are
// A' (sum over channels of U * V) A: at each of the (M + 2)^2 points the channels are a plain
// matrix product, in which a pruned kernel is simply absent. The mask survives the transform.
//
// Backwards, for the weight gradient: D = A dY A', dU = <D, V> over the tiles, dg = G' dU G.
#include "conv_tables.h"
#include "matrix.h"
#include "strips.h"
#include "winograd_matrices.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// ---- one-dimensional transforms; F(4, 3) shares sums between rows ------------------------------

template <class T, int M>
METASPARSE_INLINE void input_line(const Vec<T>* d, int step, Vec<T>* out, int out_step) {
  if constexpr (M == 4) {
    const Vec<T> two = broadcast(T(2)), four = broadcast(T(4)), five = broadcast(T(5));
    const Vec<T> d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
                 d5 = d[5 * step];
    const Vec<T> even = d4 - four * d2, odd = d3 - four * d1;
    const Vec<T> even_difference = d4 - d2, odd_difference = d3 - d1;
    out[0] = four * d0 + (d4 - five * d2);
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    out[3 * out_step] = two * odd_difference + even_difference;
    out[4 * out_step] = even_difference - two * odd_difference;
    out[5 * out_step] = four * d1 + (d5 - five * d3);
  } else {
    multiply<InputMatrix<M>, T>(d, step, out, out_step);
  }
}

template <class T, int M>
METASPARSE_INLINE void output_line(const Vec<T>* m, int step, Vec<T>* out, int out_step) {
  if constexpr (M == 4) {
    const Vec<T> two = broadcast(T(2)), four = broadcast(T(4)), eight = broadcast(T(8));
    const Vec<T> sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    const Vec<T> sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    out[0] = m[0] + sum1 + sum2;
    out[out_step] = two * difference2 + difference1;
    out[2 * out_step] = four * sum2 + sum1;
    out[3 * out_step] = eight * difference2 + difference1 + m[5 * step];
  } else {
    multiply<OutputMatrix<M>, T>(m, step, out, out_step);
  }
}

template <class T, int M>
METASPARSE_INLINE void adjoint_line(const Vec<T>* y, int step, Vec<T>* out, int out_step) {
  if constexpr (M == 4) {
    const Vec<T> two = broadcast(T(2)), four = broadcast(T(4));
    const Vec<T> y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    const Vec<T> even = y0 + y2, odd = y1 + y3;
    const Vec<T> even2 = four * y2 + y0, odd2 = four * y3 + y1;
    out[0] = y0;
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    out[3 * out_step] = two * odd2 + even2;
    out[4 * out_step] = even2 - two * odd2;
    out[5 * out_step] = y3;
  } else {
    multiply<Transposed<OutputMatrix<M>>, T>(y, step, out, out_step);
  }
}

// ---- images to V, M to images, gradients to D --------------------------------------------------

// Memory for the strips of two channels, then for the pieces.
template <class T, int M>
int64_t scratch_bytes(const TileBlock& block) {
  const int64_t strips = 4 * (M + 2) * strip_pitch(block, M, kLanes<T>);
  return strips * static_cast<int64_t>(sizeof(T)) +
         2 * strip_pieces(block, M) * static_cast<int64_t>(sizeof(StripPiece));
}

// Rows of a patch are M + 2 wide: a strip holds columns 0 .. M-1 of the tiles, and `ahead`, the
// strip of the columns M further, the last two.
template <class T, int M>
METASPARSE_INLINE void transform_patch(const T* strip, const T* ahead, int64_t pitch, T* v,
                                       int64_t point_stride) {
  constexpr int A = M + 2;
  Vec<T> rows[A][A];
  METASPARSE_UNROLL
  for (int r = 0; r < A; ++r) {
    Vec<T> raw[M], d[A + M - 2];
    METASPARSE_UNROLL
    for (int j = 0; j < M; ++j) raw[j] = load(strip + r * pitch + j * kLanes<T>);
    deinterleave<T, M>(raw, d);
    METASPARSE_UNROLL
    for (int j = 0; j < M; ++j) raw[j] = load(ahead + r * pitch + j * kLanes<T>);
    deinterleave<T, M>(raw, d + M);  // all but the first two are unused and vanish
    input_line<T, M>(d, 1, rows[r], 1);
  }
  METASPARSE_UNROLL
  for (int c = 0; c < A; ++c) {
    Vec<T> out[A];
    input_line<T, M>(&rows[0][c], A, out, 1);
    METASPARSE_UNROLL
    for (int r = 0; r < A; ++r) store(v + (r * A + c) * point_stride, out[r]);
  }
}

template <class T, int M>
void input(const TileBlock& block, const Images<const T>& x, int32_t row_shift,
           int32_t column_shift, T* v, int64_t point_stride, void* scratch) {
  constexpr int A = M + 2;
  const int64_t pitch = strip_pitch(block, M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + 2 * A * pitch};
  StripPiece* near = reinterpret_cast<StripPiece*>(strips[1] + 2 * A * pitch);
  const int64_t image = x.channels * x.plane();
  StripPiece* near_end =
      find_pieces<T>(block, {M, A, M, row_shift, column_shift}, image, x.height, x.width, near);
  StripPiece* ahead_end = find_pieces<T>(block, {M, A, M, row_shift, column_shift + M}, image,
                                         x.height, x.width, near_end);
  const auto fill = [&](int64_t channel) {
    const T* plane = x.data + channel * x.plane();
    T* strip = strips[channel & 1];
    fill_strips<T, A>(near, near_end, plane, x.width, strip, pitch);
    fill_strips<T, A>(near_end, ahead_end, plane, x.width, strip + A * pitch, pitch);
  };
  fill(0);
  for (int64_t channel = 0; channel < x.channels; ++channel) {
    if (channel + 1 < x.channels) fill(channel + 1);
    const T* strip = strips[channel & 1];
    for (int t = 0; t < block.vectors; ++t) {
      transform_patch<T, M>(strip + t * M * kLanes<T>, strip + A * pitch + t * M * kLanes<T>, pitch,
                            v + (channel * block.vectors + t) * kLanes<T>, point_stride);
    }
  }
}

template <class T, int M>
METASPARSE_INLINE void transform_outputs(const T* m, int64_t column_stride, T bias, T* strip,
                                         int64_t pitch) {
  constexpr int A = M + 2;
  Vec<T> rows[M][A];
  METASPARSE_UNROLL
  for (int c = 0; c < A; ++c) {
    Vec<T> column[A];
    METASPARSE_UNROLL
    for (int r = 0; r < A; ++r) column[r] = load(m + (r * A + c) * column_stride);
    output_line<T, M>(column, 1, &rows[0][c], A);
  }
  const Vec<T> shift = broadcast(bias);
  METASPARSE_UNROLL
  for (int r = 0; r < M; ++r) {
    Vec<T> out[M], ordered[M];
    output_line<T, M>(rows[r], 1, out, 1);
    METASPARSE_UNROLL
    for (int j = 0; j < M; ++j) out[j] += shift;
    interleave<T, M>(out, ordered);
    METASPARSE_UNROLL
    for (int j = 0; j < M; ++j) store(strip + r * pitch + j * kLanes<T>, ordered[j]);
  }
}

template <class T, int M>
void output(const TileBlock& block, const T* m, int64_t column_stride, const T* bias,
            int64_t channels, const Images<T>& y, void* scratch) {
  const int64_t pitch = strip_pitch(block, M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + M * pitch};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(strips[1] + M * pitch);
  StripPiece* end =
      find_pieces<T>(block, {M, M, M, 0, 0}, y.channels * y.plane(), y.height, y.width, pieces);
  const auto drain = [&](int64_t channel) {
    drain_strips<T, M>(pieces, end, strips[channel & 1], pitch, y.data + channel * y.plane(),
                       y.width);
  };
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int t = 0; t < block.vectors; ++t) {
      transform_outputs<T, M>(m + (channel * block.vectors + t) * kLanes<T>, column_stride,
                              bias == nullptr ? T(0) : bias[channel],
                              strips[channel & 1] + t * M * kLanes<T>, pitch);
    }
    if (channel > 0) drain(channel - 1);
  }
  if (channels > 0) drain(channels - 1);
}

template <class T, int M>
void adjoint(const TileBlock& block, const Images<const T>& grad, T* d, int64_t column_stride,
             void* scratch) {
  constexpr int A = M + 2;
  const int64_t pitch = strip_pitch(block, M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + M * pitch};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(strips[1] + M * pitch);
  StripPiece* end = find_pieces<T>(block, {M, M, M, 0, 0}, grad.channels * grad.plane(),
                                   grad.height, grad.width, pieces);
  const auto fill = [&](int64_t channel) {
    fill_strips<T, M>(pieces, end, grad.data + channel * grad.plane(), grad.width,
                      strips[channel & 1], pitch);
  };
  fill(0);
  for (int64_t channel = 0; channel < grad.channels; ++channel) {
    if (channel + 1 < grad.channels) fill(channel + 1);
    for (int t = 0; t < block.vectors; ++t) {
      const T* strip = strips[channel & 1] + t * M * kLanes<T>;
      Vec<T> rows[M][A];
      METASPARSE_UNROLL
      for (int r = 0; r < M; ++r) {
        Vec<T> raw[M], y[M];
        METASPARSE_UNROLL
        for (int j = 0; j < M; ++j) raw[j] = load(strip + r * pitch + j * kLanes<T>);
        deinterleave<T, M>(raw, y);
        adjoint_line<T, M>(y, 1, rows[r], 1);
      }
      T* out = d + (channel * block.vectors + t) * kLanes<T>;
      METASPARSE_UNROLL
      for (int c = 0; c < A; ++c) {
        Vec<T> column[A];
        adjoint_line<T, M>(&rows[0][c], A, column, 1);
        METASPARSE_UNROLL
        for (int r = 0; r < A; ++r) store(out + (r * A + c) * column_stride, column[r]);
      }
    }
  }
}

// ---- weights -----------------------------------------------------------------------------------

// A register of kernels at a time, lane by lane; past the end the last kernel is repeated.
template <class T, int M>
void encode(const T* kernels, const int32_t* places, int64_t begin, int64_t end, bool flipped, T* u,
            int64_t stride) {
  constexpr int A = M + 2;
  for (int64_t e = begin; e < end; e += kLanes<T>) {
    alignas(64) T taps[9][kLanes<T>];
    for (int l = 0; l < kLanes<T>; ++l) {
      const T* kernel = kernels + static_cast<int64_t>(places[e + l < end ? e + l : end - 1]) * 9;
      METASPARSE_UNROLL
      for (int k = 0; k < 9; ++k) taps[k][l] = kernel[flipped ? 8 - k : k];
    }
    Vec<T> g[9], rows[A][3];
    METASPARSE_UNROLL
    for (int k = 0; k < 9; ++k) g[k] = load(taps[k]);
    METASPARSE_UNROLL
    for (int c = 0; c < 3; ++c) multiply<WeightMatrix<M>, T>(g + c, 3, &rows[0][c], 3);
    METASPARSE_UNROLL
    for (int r = 0; r < A; ++r) {
      Vec<T> out[A];
      multiply<WeightMatrix<M>, T>(rows[r], 1, out, 1);
      METASPARSE_UNROLL
      for (int c = 0; c < A; ++c) store(u + (r * A + c) * stride + e, out[c]);
    }
  }
}

template <class T, int M>
void decode_adjoint(const T* du, int64_t stride, const int32_t* places, int64_t begin, int64_t end,
                    T* grad_kernels) {
  constexpr int A = M + 2;
  using Adjoint = Transposed<WeightMatrix<M>>;
  for (int64_t e = begin; e < end; e += kLanes<T>) {
    Vec<T> rows[3][A];
    METASPARSE_UNROLL
    for (int c = 0; c < A; ++c) {
      Vec<T> column[A];
      METASPARSE_UNROLL
      for (int r = 0; r < A; ++r) column[r] = load(du + (r * A + c) * stride + e);
      multiply<Adjoint, T>(column, 1, &rows[0][c], A);
    }
    alignas(64) T taps[9][kLanes<T>];
    METASPARSE_UNROLL
    for (int r = 0; r < 3; ++r) {
      Vec<T> out[3];
      multiply<Adjoint, T>(rows[r], 1, out, 1);
      METASPARSE_UNROLL
      for (int c = 0; c < 3; ++c) store(taps[r * 3 + c], out[c]);
    }
    for (int l = 0; l < kLanes<T> && e + l < end; ++l) {
      T* kernel = grad_kernels + static_cast<int64_t>(places[e + l]) * 9;
      METASPARSE_UNROLL
      for (int k = 0; k < 9; ++k) kernel[k] = taps[k][l];
    }
  }
}

template <class T, int M>
constexpr WinogradKernels<T> kTile = {scratch_bytes<T, M>, input<T, M>,  output<T, M>,
                                      adjoint<T, M>,       encode<T, M>, decode_adjoint<T, M>};

}  // namespace

template <class T>
const WinogradKernels<T>& winograd_kernels(int tile) {
  switch (tile) {
    case 2:
      return kTile<T, 2>;
    case 3:
      return kTile<T, 3>;
    case 4:
      return kTile<T, 4>;
    default:
      return kTile<T, 5>;
  }
}

template const WinogradKernels<float>& winograd_kernels<float>(int);
template const WinogradKernels<double>& winograd_kernels<double>(int);

}  // namespace metasparse::cpu::METASPARSE_ISA
