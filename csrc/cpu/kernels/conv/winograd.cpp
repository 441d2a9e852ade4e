// The transforms of Winograd convolution, 3x3 kernels at stride 1, tiles of M x M outputs.
//
// With V = B' d B (the M + 2 squared inputs of a tile) and U = G g G', the outputs of a tile are
// A' (sum over channels of U * V) A: at each of the (M + 2)^2 points the channels are one
// SpMM, in which a pruned kernel is simply absent. The mask survives the transform.
//
// Backwards, for the weight gradient: D = A dY A', dU = <D, V> over the tiles, dg = G' dU G.
#include "matrix.h"
#include "tables.h"
#include "tile_io.h"
#include "transforms.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// ---- matrices ----------------------------------------------------------------------------------
//
// Winograd's minimal filtering F(M, 3): M neighbouring outputs of a filter of 3 taps from M + 2
// multiplications instead of 3 M,
//
//   y = A' [ (G g) * (B' d) ],   * elementwise, d the M + 2 inputs, g the 3 taps.
//
// It is polynomial multiplication: B' and A' evaluate and interpolate at the points 0, 1, -1, 2,
// -2, 1/2 (as many as M needs) and infinity. Rows of G and B' of one point may be scaled against
// each other; here B' has integers, so that the transform of the images, which is done most often,
// is cheap and exact. Points far from one make the rows uneven in size, which is where rounding
// errors grow: about 2e-7 of the largest output for M = 2, 1e-6 for M = 3, up to 5e-6 for M = 4 and
// 5 (float32).
//
// In two dimensions the same is applied to rows, then to columns: (M + 2)^2 products for M^2
// outputs.

template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  static constexpr double kOutput[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
  static constexpr double kWeight[4][3] = {{-1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  static constexpr double kInput[4][4] = {
      {-1, 0, 1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
};

template <>
struct Winograd<3> {
  static constexpr double kOutput[3][5] = {{1, 1, 1, 1, 0}, {0, 1, -1, 2, 0}, {0, 1, 1, 4, 1}};
  static constexpr double kWeight[5][3] = {{1. / 2, 0, 0},
                                           {-1. / 2, -1. / 2, -1. / 2},
                                           {-1. / 6, 1. / 6, -1. / 6},
                                           {1. / 6, 1. / 3, 2. / 3},
                                           {0, 0, 1}};
  static constexpr double kInput[5][5] = {
      {2, -1, -2, 1, 0}, {0, -2, -1, 1, 0}, {0, 2, -3, 1, 0}, {0, -1, 0, 1, 0}, {0, 2, -1, -2, 1}};
};

template <>
struct Winograd<4> {
  static constexpr double kOutput[4][6] = {
      {1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}};
  static constexpr double kWeight[6][3] = {{1. / 4, 0, 0},
                                           {-1. / 6, -1. / 6, -1. / 6},
                                           {-1. / 6, 1. / 6, -1. / 6},
                                           {1. / 24, 1. / 12, 1. / 6},
                                           {1. / 24, -1. / 12, 1. / 6},
                                           {0, 0, 1}};
  static constexpr double kInput[6][6] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0},
                                          {0, 4, -4, -1, 1, 0}, {0, -2, -1, 2, 1, 0},
                                          {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
};

template <>
struct Winograd<5> {
  static constexpr double kOutput[5][7] = {{1, 1, 1, 1, 1, 1, 0},
                                           {0, 1, -1, 2, -2, 1. / 2, 0},
                                           {0, 1, 1, 4, 4, 1. / 4, 0},
                                           {0, 1, -1, 8, -8, 1. / 8, 0},
                                           {0, 1, 1, 16, 16, 1. / 16, 1}};
  static constexpr double kWeight[7][3] = {{-1. / 4, 0, 0},
                                           {-1. / 6, -1. / 6, -1. / 6},
                                           {1. / 18, -1. / 18, 1. / 18},
                                           {1. / 72, 1. / 36, 1. / 18},
                                           {-1. / 120, 1. / 60, -1. / 30},
                                           {32. / 45, 16. / 45, 8. / 45},
                                           {0, 0, 1. / 2}};
  static constexpr double kInput[7][7] = {{-4, 8, 5, -10, -1, 2, 0}, {0, 4, -4, -9, 1, 2, 0},
                                          {0, -4, 12, -7, -3, 2, 0}, {0, 2, -3, -4, 3, 2, 0},
                                          {0, -2, 5, 0, -5, 2, 0},   {0, 4, 0, -5, 0, 1, 0},
                                          {0, -4, 8, 5, -10, -1, 2}};
};

template <int M>
struct OutputMatrix {  // A'
  static constexpr int rows = M, columns = M + 2;
  static constexpr double at(int r, int c) { return Winograd<M>::kOutput[r][c]; }
};

template <int M>
struct WeightMatrix {  // G
  static constexpr int rows = M + 2, columns = 3;
  static constexpr double at(int r, int c) { return Winograd<M>::kWeight[r][c]; }
};

template <int M>
struct InputMatrix {  // B'
  static constexpr int rows = M + 2, columns = M + 2;
  static constexpr double at(int r, int c) { return Winograd<M>::kInput[r][c]; }
};

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
struct Algorithm {
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
  static METASPARSE_INLINE void output_line_adjoint(const Vec<T>* y, int step, Vec<T>* out,
                                                    int out_step) {
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
  return tile_lines_bytes<T>(block, M, 2, M + 2);
}

template <class T, int M>
void input_transform(const TileBlock& block, const Images<const T>& x, int32_t row_shift,
                     int32_t column_shift, T* v, int64_t point_stride, void* scratch) {
  constexpr int A = M + 2;
  load_tile_lines<T, LineShape<M, 2>, A, A>(
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
constexpr WinogradKernels<T> kTile = {scratch_bytes<T, M>,
                                      input_transform<T, M>,
                                      output_transform<T, Algorithm<M>>,
                                      output_transform_adjoint<T, Algorithm<M>>,
                                      weight_transform<T, Algorithm<M>>,
                                      weight_transform_backward<T, Algorithm<M>>};

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
