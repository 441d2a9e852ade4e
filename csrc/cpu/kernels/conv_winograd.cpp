// The transforms of Winograd convolution, 3x3 kernels at stride 1, tiles of M x M outputs.
//
// With V = B' d B (the M + 2 squared inputs of a tile) and U = G g G', the outputs of a tile are
// A' (sum over channels of U * V) A: at each of the (M + 2)^2 points the channels are a plain
// matrix product, in which a pruned kernel is simply absent. The mask survives the transform.
//
// Backwards, for the weight gradient: D = A dY A', dU = <D, V> over the tiles, dg = G' dU G.
#include "conv_tables.h"
#include "matrix.h"
#include "tile_lines.h"
#include "tile_transforms.h"
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

template <int M>
struct Scheme {
  static constexpr int tile = M, planes = M + 2, weights = M + 2;
  using Weight = WeightMatrix<M>;

  template <class T>
  static METASPARSE_INLINE void output_line(const Vec<T>* m, int step, Vec<T>* out, int out_step) {
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

  template <class T>
  static METASPARSE_INLINE void adjoint_line(const Vec<T>* y, int step, Vec<T>* out, int out_step) {
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
};

// ---- images to V -------------------------------------------------------------------------------

template <class T, int M>
int64_t scratch_bytes(const TileBlock& block) {
  return lines_bytes<T>(block, M, 2, M + 2);
}

template <class T, int M>
void input(const TileBlock& block, const Images<const T>& x, int32_t row_shift,
           int32_t column_shift, T* v, int64_t point_stride, void* scratch) {
  constexpr int A = M + 2;
  gather_lines<T, LineShape<M, 2>, A, A>(
      block, {M, A, M, row_shift, column_shift}, x, scratch,
      [](const Vec<T>* in, Vec<T>* out) METASPARSE_BODY { input_line<T, M>(in, 1, out, 1); },
      [&](int64_t channel, int r, int t, const Vec<T>* line) METASPARSE_BODY {
        Vec<T> points[A];
        input_line<T, M>(line, 1, points, 1);
        T* out = v + r * A * point_stride + (channel * block.vectors + t) * kLanes<T>;
        METASPARSE_UNROLL
        for (int c = 0; c < A; ++c) store(out + c * point_stride, points[c]);
      });
}

template <class T, int M>
constexpr WinogradKernels<T> kTile = {scratch_bytes<T, M>,        input<T, M>,
                                      output_tiles<T, Scheme<M>>, adjoint_tiles<T, Scheme<M>>,
                                      encode<T, Scheme<M>>,       decode_adjoint<T, Scheme<M>>};

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
