// The transforms of the polyphase scheme: 3x3 kernels, stride 2, padding 1, tiles of M x M outputs.
//
// Both axes follow polyphase_matrices.h, so V has (2 M + 1)^2 planes, U (M + 2)^2, M (2 M - 1)^2.
//
// The input gradient is the transpose: gx[2q + 1] = w2 g[q] + w0 g[q + 1] (again F(M, 2), kernels
// rotated) and gx[2q] = w1 g[q]. Odd and even input rows are separate passes with M + 1 and M row
// points; within a row both column phases are computed together and interleaved.
#include "conv_tables.h"
#include "matrix.h"
#include "polyphase_matrices.h"
#include "strips.h"
#include "tile_lanes.h"
#include "tile_lines.h"
#include "tile_transforms.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

template <int M>
struct Scheme {
  static constexpr int tile = M, planes = 2 * M - 1, weights = M + 2;
  using Weight = PhaseWeightMatrix<M>;

  template <class T>
  static METASPARSE_INLINE void output_line(const Vec<T>* m, int step, Vec<T>* out, int out_step) {
    multiply<PhaseOutputMatrix<M>, T>(m, step, out, out_step);
  }

  template <class T>
  static METASPARSE_INLINE void adjoint_line(const Vec<T>* y, int step, Vec<T>* out, int out_step) {
    multiply<Transposed<PhaseOutputMatrix<M>>, T>(y, step, out, out_step);
  }
};

template <class T, int M>
int64_t scratch_bytes(const TileBlock& block) {
  return lines_bytes<T>(block, 2 * M, 1, 2 * M + 1);
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
void input(const TileBlock& block, const Images<const T>& x, T* v, int64_t point_stride,
           void* scratch) {
  constexpr int P = 2 * M + 1;
  gather_lines<T, LineShape<2 * M, 1, Side::left>, P, P>(
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
void grad_input(const TileBlock& block, const Images<const T>& g, T* v, int64_t point_stride,
                void* scratch) {
  constexpr int P = 2 * M + 1, R = Even ? M : M + 1;
  const auto down = [](const Vec<T>* in, Vec<T>* out) METASPARSE_BODY {
    if constexpr (Even) {
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) out[r] = in[r];
    } else {
      multiply<OddInputMatrix<M>, T>(in, 1, out, 1);
    }
  };
  gather_lines<T, LineShape<M, 1>, R, R>(
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
void grad_output(const TileBlock& block, const T* m, int64_t column_stride, int64_t channels,
                 const Images<T>& gx, void* scratch) {
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
  const auto drain = [&](int64_t channel) {
    drain_strips<T, R, M>(pieces, end, strips[channel & 1], pitch, gx.data + channel * gx.plane(),
                          2 * gx.width, gx.plane(), down);
  };
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int r = 0; r < R; ++r) {
      T* strip = strips[channel & 1] + r * pitch;
      for (int t = 0; t < block.vectors; ++t, strip += 2 * M * kLanes<T>) {
        const T* in = m + r * P * column_stride + (channel * block.vectors + t) * kLanes<T>;
        Vec<T> points[M + 1], odd[M], merged[2 * M];
        METASPARSE_UNROLL
        for (int c = 0; c <= M; ++c) points[c] = load(in + c * column_stride);
        multiply<OddOutputMatrix<M>, T>(points, 1, odd, 1);
        METASPARSE_UNROLL
        for (int j = 0; j < M; ++j) {
          merged[2 * j] = load(in + (M + 1 + j) * column_stride);
          merged[2 * j + 1] = odd[j];
        }
        store_tiles<T, 2 * M>(strip, merged);
      }
    }
    if (channel > 0) drain(channel - 1);
  }
  if (channels > 0) drain(channels - 1);
}

template <class T, int M>
constexpr PolyphaseKernels<T> kTile = {
    scratch_bytes<T, M>,
    input<T, M>,
    output_tiles<T, Scheme<M>>,
    adjoint_tiles<T, Scheme<M>>,
    {grad_input<T, M, false>, grad_input<T, M, true>},
    {grad_output<T, M, false>, grad_output<T, M, true>},
    encode<T, Scheme<M>>,
    decode_adjoint<T, Scheme<M>>,
};

}  // namespace

template <class T>
const PolyphaseKernels<T>& polyphase_kernels(int tile) {
  return tile == 2 ? kTile<T, 2> : kTile<T, 3>;
}

template const PolyphaseKernels<float>& polyphase_kernels<float>(int);
template const PolyphaseKernels<double>& polyphase_kernels<double>(int);

}  // namespace metasparse::cpu::METASPARSE_ISA
