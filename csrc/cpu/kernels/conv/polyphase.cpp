// The transforms of the polyphase algorithm: 3x3 kernels, stride 2, padding 1, tiles of M x M
// outputs.
//
// Both axes follow the matrices below, so V has (2 M + 1)^2 planes, U (M + 2)^2, M (2 M - 1)^2.
//
// The input gradient is the transpose: gx[2q + 1] = w2 g[q] + w0 g[q + 1] (again F(M, 2), kernels
// rotated) and gx[2q] = w1 g[q]. Odd and even input rows are separate passes with M + 1 and M row
// points; within a row both column phases are computed together and interleaved.
#include "matrix.h"
#include "tables.h"
#include "tile_io.h"
#include "tile_lanes.h"
#include "transforms.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// ---- matrices ----------------------------------------------------------------------------------
//
// Polyphase filtering with 3 taps at stride 2 and padding 1, M outputs at a time.
//
//   y[p] = w0 x[2p - 1] + w2 x[2p + 1]   two taps on the odd inputs: Winograd's F(M, 2)
//        + w1 x[2p]                      one tap on the even inputs: no transform
//
// F(M, 2) needs M + 1 products, the even phase M: 2 M + 1 points instead of 3 M products. All even
// points use the same weight w1, so a kernel stores M + 2 weights. Point 0 enters the first output
// alone and the last point (infinity) the last output alone, with coefficient one, exactly as the
// even products of these outputs do: they share an accumulator, which leaves 2 M - 1.
//
// Nothing but additions and halvings is needed for M = 2 and 3, so errors stay those of a direct
// sum. Points are numbered: 0 .. M the odd phase, M + 1 .. 2 M the even phase.

template <int M>
struct Polyphase;

template <>
struct Polyphase<2> {
  static constexpr double kInput[3][3] = {{1, -1, 0}, {0, 1, 0}, {0, -1, 1}};
  static constexpr double kWeight[3][2] = {{1, 0}, {1, 1}, {0, 1}};
  static constexpr double kOutput[2][3] = {{1, 1, 0}, {0, 1, 1}};
};

template <>
struct Polyphase<3> {
  static constexpr double kInput[4][4] = {
      {1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
  static constexpr double kWeight[4][2] = {{1, 0}, {.5, .5}, {.5, -.5}, {0, 1}};
  static constexpr double kOutput[3][4] = {{1, 1, 1, 0}, {0, 1, -1, 0}, {0, 1, 1, 1}};
};

template <int M>
struct OddInputMatrix {  // M + 1 odd inputs -> points 0 .. M
  static constexpr int rows = M + 1, columns = M + 1;
  static constexpr double at(int r, int c) { return Polyphase<M>::kInput[r][c]; }
};

template <int M>
struct PhaseWeightMatrix {  // 3 taps -> M + 2 weights, the last one for all even points
  static constexpr int rows = M + 2, columns = 3;
  static constexpr double at(int r, int c) {
    if (r == M + 1) return c == 1;
    return c == 1 ? 0 : Polyphase<M>::kWeight[r][c / 2];
  }
};

template <int M>
struct PhaseOutputMatrix {  // 2 M - 1 accumulators -> M outputs
  static constexpr int rows = M, columns = 2 * M - 1;
  static constexpr double at(int r, int c) {
    return c <= M ? Polyphase<M>::kOutput[r][c] : c - M == r;
  }
};

template <int M>
struct OddOutputMatrix {  // points 0 .. M -> M odd inputs' gradients
  static constexpr int rows = M, columns = M + 1;
  static constexpr double at(int r, int c) { return Polyphase<M>::kOutput[r][c]; }
};

template <int M>
struct Algorithm {
  static constexpr int tile = M, planes = 2 * M - 1, weights = M + 2;
  using Weight = PhaseWeightMatrix<M>;

  template <class T>
  static METASPARSE_INLINE void output_line(const Vec<T>* m, int step, Vec<T>* out, int out_step) {
    multiply<PhaseOutputMatrix<M>, T>(m, step, out, out_step);
  }

  template <class T>
  static METASPARSE_INLINE void output_line_adjoint(const Vec<T>* y, int step, Vec<T>* out,
                                                    int out_step) {
    multiply<Transposed<PhaseOutputMatrix<M>>, T>(y, step, out, out_step);
  }
};

template <class T, int M>
int64_t scratch_bytes(const TileBlock& block) {
  return tile_lines_bytes<T>(block, 2 * M, 1, 2 * M + 1);
}

// ---- forward: images to V ----------------------------------------------------------------------

// The 2 M + 1 inputs of a line, o0 e0 o1 e1 ... oM, to its points.
template <class T, int M>
METASPARSE_INLINE void input_line(const Vec<T>* in, Vec<T>* points) {
  multiply<OddInputMatrix<M>, T>(in, 2, points, 1);
  METASPARSE_UNROLL
  for (int j = 0; j < M; ++j) points[M + 1 + j] = in[2 * j + 1];
}

template <class T, int M>
void input_transform(const TileBlock& block, const Images<const T>& x, T* v, int64_t point_stride,
                     void* scratch) {
  constexpr int P = 2 * M + 1;
  load_tile_lines<T, LineShape<2 * M, 1, Side::left>, P, P>(
      block, {2 * M, P, 2 * M, -1, 0}, x, scratch,
      [](const Vec<T>* in, Vec<T>* out) METASPARSE_BODY { input_line<T, M>(in, out); },
      [&](int64_t channel, int r, int t, const Vec<T>* line) METASPARSE_BODY {
        Vec<T> points[P];
        input_line<T, M>(line, points);
        T* out = v + r * P * point_stride + (channel * block.vectors + t) * kLanes<T>;
        METASPARSE_UNROLL
        for (int c = 0; c < P; ++c) store(out + c * point_stride, points[c]);
      });
}

// ---- input gradient ----------------------------------------------------------------------------

// Even: gradients of even input rows, M row points that are the rows themselves; else of odd rows.
template <class T, int M, bool Even>
void grad_input_transform(const TileBlock& block, const Images<const T>& g, T* v,
                          int64_t point_stride, void* scratch) {
  constexpr int P = 2 * M + 1, R = Even ? M : M + 1;
  const auto down = [](const Vec<T>* in, Vec<T>* out) METASPARSE_BODY {
    if constexpr (Even) {
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) out[r] = in[r];
    } else {
      multiply<OddInputMatrix<M>, T>(in, 1, out, 1);
    }
  };
  load_tile_lines<T, LineShape<M, 1>, R, R>(
      block, {M, R, M, 0, 0}, g, scratch, down,
      [&](int64_t channel, int r, int t, const Vec<T>* line) METASPARSE_BODY {
        Vec<T> points[M + 1];
        multiply<OddInputMatrix<M>, T>(line, 1, points, 1);
        T* out = v + r * P * point_stride + (channel * block.vectors + t) * kLanes<T>;
        METASPARSE_UNROLL
        for (int c = 0; c <= M; ++c) store(out + c * point_stride, points[c]);
        METASPARSE_UNROLL
        for (int c = 0; c < M; ++c) store(out + (M + 1 + c) * point_stride, line[c]);
      });
}

template <class T, int M, bool Even>
void grad_output_transform(const TileBlock& block, const T* m, int64_t accumulator_stride,
                           int64_t channels, const Images<T>& gx, void* scratch) {
  constexpr int P = 2 * M + 1, R = Even ? M : M + 1;
  constexpr StripShape kShape = {2 * M, M, 2 * M, Even ? 0 : 1, 0, 2};
  const int64_t pitch = strip_pitch(block, 2 * M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + R * pitch};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(strips[1] + R * pitch);
  StripPiece* end = find_pieces(block, kShape, gx, pieces);
  const auto down = [](const Vec<T>* in, Vec<T>* out) METASPARSE_BODY {
    if constexpr (Even) {
      METASPARSE_UNROLL
      for (int r = 0; r < M; ++r) out[r] = in[r];
    } else {
      multiply<OddOutputMatrix<M>, T>(in, 1, out, 1);
    }
  };
  const auto store_channel = [&](int64_t channel) {
    store_strips<T, R, M>(pieces, end, strips[channel & 1], pitch, gx.data + channel * gx.plane(),
                          2 * gx.width, gx.plane(), down);
  };
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int r = 0; r < R; ++r) {
      T* strip = strips[channel & 1] + r * pitch;
      for (int t = 0; t < block.vectors; ++t, strip += 2 * M * kLanes<T>) {
        const T* in = m + r * P * accumulator_stride + (channel * block.vectors + t) * kLanes<T>;
        Vec<T> points[M + 1], odd[M], merged[2 * M];
        METASPARSE_UNROLL
        for (int c = 0; c <= M; ++c) points[c] = load(in + c * accumulator_stride);
        multiply<OddOutputMatrix<M>, T>(points, 1, odd, 1);
        METASPARSE_UNROLL
        for (int j = 0; j < M; ++j) {
          merged[2 * j] = load(in + (M + 1 + j) * accumulator_stride);
          merged[2 * j + 1] = odd[j];
        }
        store_tiles<T, 2 * M>(strip, merged);
      }
    }
    if (channel > 0) store_channel(channel - 1);
  }
  if (channels > 0) store_channel(channels - 1);
}

template <class T, int M>
constexpr PolyphaseKernels<T> kTile = {
    scratch_bytes<T, M>,
    input_transform<T, M>,
    output_transform<T, Algorithm<M>>,
    output_transform_adjoint<T, Algorithm<M>>,
    {grad_input_transform<T, M, false>, grad_input_transform<T, M, true>},
    {grad_output_transform<T, M, false>, grad_output_transform<T, M, true>},
    weight_transform<T, Algorithm<M>>,
    weight_transform_backward<T, Algorithm<M>>,
};

}  // namespace

template <class T>
const PolyphaseKernels<T>& polyphase_kernels(int tile) {
  return tile == 2 ? kTile<T, 2> : kTile<T, 3>;
}

template const PolyphaseKernels<float>& polyphase_kernels<float>(int);
template const PolyphaseKernels<double>& polyphase_kernels<double>(int);

}  // namespace metasparse::cpu::METASPARSE_ISA
