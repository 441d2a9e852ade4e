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

// ---- the column that a tile shares with its neighbour ------------------------------------------
// The odd inputs of a tile begin with the last one of the tile to its left; the gradients of a tile
// end with the first one of the tile to its right. At the image's border that is padding: zero.

template <int L>
struct FromLeft {  // lanes moved up by one; lane 0 from the last of the register before
  static constexpr int at(int lane) { return L - 1 + lane; }
};

template <int L>
struct FromRight {  // lanes moved down by one; the last from lane 0 of the register after
  static constexpr int at(int lane) { return lane + 1; }
};

// Which lanes of each register have that neighbour, and where its column lies when the neighbour is
// not in the block.
struct Neighbours {
  Lanes lanes[kMaxVectors];
  int64_t offset;
  Lanes rows;  // 0: the block's outermost tile has none
};

template <class T>
METASPARSE_INLINE void clear_lane(Neighbours& n, int32_t lane) {
  n.lanes[lane / kLanes<T>] &= ~(Lanes{1} << lane % kLanes<T>);
}

template <class T>
Neighbours left_neighbours(const TileBlock& block, const StripShape& shape,
                           const Images<const T>& x) {
  Neighbours n = {{}, 0, 0};
  for (Lanes& lanes : n.lanes) lanes = kAllLanes<T>;
  for (int32_t r = 0; r < block.run_count; ++r) {
    if (block.runs[r].column == 0) clear_lane<T>(n, block.runs[r].lane);
  }
  const TileRun& first = block.runs[0];
  if (first.column > 0) {
    const int64_t row = static_cast<int64_t>(shape.row_step) * first.row + shape.row_shift;
    n.rows = rows_inside(shape, row, x.height);
    n.offset = first.image * x.channels * x.plane() + row * x.width +
               static_cast<int64_t>(shape.tile) * first.column - 1;
  }
  return n;
}

template <class T>
Neighbours right_neighbours(const TileBlock& block, const StripShape& shape,
                            const Images<const T>& x, int64_t tile_columns) {
  Neighbours n = {{}, 0, 0};
  for (Lanes& lanes : n.lanes) lanes = kAllLanes<T>;
  for (int32_t r = 0; r < block.run_count; ++r) {
    const TileRun& run = block.runs[r];
    if (run.image < 0 || run.column + run.count == tile_columns) {
      clear_lane<T>(n, run.lane + run.count - 1);
    }
  }
  const TileRun& last = block.runs[block.run_count - 1];
  if (last.image >= 0 && last.column + last.count < tile_columns) {
    const int64_t row = static_cast<int64_t>(shape.row_step) * last.row + shape.row_shift;
    const int64_t column = static_cast<int64_t>(shape.tile) * (last.column + last.count);
    n.rows = rows_inside(shape, row, x.height);
    n.offset = last.image * x.channels * x.plane() + row * x.width + column;
  }
  return n;
}

template <class T, int Rows>
METASPARSE_INLINE void load_outer_column(const Neighbours& n, const T* plane, int64_t width,
                                         Vec<T>* out) {
  METASPARSE_UNROLL
  for (int r = 0; r < Rows; ++r) {
    out[r] = n.rows >> r & 1 ? broadcast(plane[n.offset + r * width]) : Vec<T>{};
  }
}

// Memory for the strips of two channels, then for the pieces.
template <class T, int M>
int64_t scratch_bytes(const TileBlock& block) {
  const int64_t strips = 2 * (2 * M + 1) * strip_pitch(block, 2 * M, kLanes<T>);
  return strips * static_cast<int64_t>(sizeof(T)) +
         strip_pieces(block, 2 * M) * static_cast<int64_t>(sizeof(StripPiece));
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
void input(const TileBlock& block, const Images<const T>& x, int64_t, T* v, int64_t point_stride,
           void* scratch) {
  constexpr int P = 2 * M + 1;
  constexpr StripShape kShape = {2 * M, P, 2 * M, -1, 0};
  const int64_t pitch = strip_pitch(block, 2 * M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + P * pitch};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(strips[1] + P * pitch);
  StripPiece* end =
      find_pieces<T>(block, kShape, x.channels * x.plane(), x.height, x.width, pieces);
  const Neighbours neighbours = left_neighbours<T>(block, kShape, x);
  const auto down = [](const Vec<T>* in, Vec<T>* out)
                        METASPARSE_BODY { input_line<T, M>(in, out); };
  const auto fill = [&](int64_t channel) {
    fill_strips<T, P, P>(pieces, end, x.data + channel * x.plane(), x.width, x.plane(),
                         strips[channel & 1], pitch, down);
  };
  fill(0);
  for (int64_t channel = 0; channel < x.channels; ++channel) {
    if (channel + 1 < x.channels) fill(channel + 1);
    Vec<T> outer[P], left[P];
    load_outer_column<T, P>(neighbours, x.data + channel * x.plane(), x.width, outer);
    down(outer, left);
    for (int r = 0; r < P; ++r) {
      const T* strip = strips[channel & 1] + r * pitch;
      T* out = v + r * P * point_stride + channel * block.vectors * kLanes<T>;
      Vec<T> last = left[r];
      for (int t = 0; t < block.vectors; ++t, strip += 2 * M * kLanes<T>, out += kLanes<T>) {
        Vec<T> line[P], points[P];
        load_tiles<T, 2 * M>(strip, line + 1);
        const Vec<T> shifted = shuffle<FromLeft<kLanes<T>>, T>(last, line[2 * M]);
        line[0] = select(neighbours.lanes[t], shifted, Vec<T>{});
        last = line[2 * M];
        input_line<T, M>(line, points);
        METASPARSE_UNROLL
        for (int c = 0; c < P; ++c) store(out + c * point_stride, points[c]);
      }
    }
  }
}

// ---- input gradient ----------------------------------------------------------------------------

// Even: gradients of even input rows, M row points that are the rows themselves; else of odd rows.
template <class T, int M, bool Even>
void grad_input(const TileBlock& block, const Images<const T>& g, int64_t tile_columns, T* v,
                int64_t point_stride, void* scratch) {
  constexpr int P = 2 * M + 1, R = Even ? M : M + 1;
  constexpr StripShape kShape = {M, R, M, 0, 0};
  const int64_t pitch = strip_pitch(block, M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + R * pitch};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(strips[1] + R * pitch);
  StripPiece* end =
      find_pieces<T>(block, kShape, g.channels * g.plane(), g.height, g.width, pieces);
  const Neighbours neighbours = right_neighbours<T>(block, kShape, g, tile_columns);
  const auto down = [](const Vec<T>* in, Vec<T>* out) METASPARSE_BODY {
    if constexpr (Even) {
      METASPARSE_UNROLL
      for (int r = 0; r < R; ++r) out[r] = in[r];
    } else {
      multiply<OddInputMatrix<M>, T>(in, 1, out, 1);
    }
  };
  const auto fill = [&](int64_t channel) {
    fill_strips<T, R, R>(pieces, end, g.data + channel * g.plane(), g.width, g.plane(),
                         strips[channel & 1], pitch, down);
  };
  fill(0);
  for (int64_t channel = 0; channel < g.channels; ++channel) {
    if (channel + 1 < g.channels) fill(channel + 1);
    Vec<T> outer[R], right[R];
    load_outer_column<T, R>(neighbours, g.data + channel * g.plane(), g.width, outer);
    down(outer, right);
    for (int r = 0; r < R; ++r) {
      Vec<T> next = right[r];
      for (int t = block.vectors - 1; t >= 0; --t) {
        Vec<T> line[M + 1], points[M + 1];
        load_tiles<T, M>(strips[channel & 1] + r * pitch + t * M * kLanes<T>, line);
        const Vec<T> shifted = shuffle<FromRight<kLanes<T>>, T>(line[0], next);
        line[M] = select(neighbours.lanes[t], shifted, Vec<T>{});
        next = line[0];
        multiply<OddInputMatrix<M>, T>(line, 1, points, 1);
        T* out = v + r * P * point_stride + (channel * block.vectors + t) * kLanes<T>;
        METASPARSE_UNROLL
        for (int c = 0; c <= M; ++c) store(out + c * point_stride, points[c]);
        METASPARSE_UNROLL
        for (int c = 0; c < M; ++c) store(out + (M + 1 + c) * point_stride, line[c]);
      }
    }
  }
}

template <class T, int M, bool Even>
void grad_output(const TileBlock& block, const T* m, int64_t column_stride, int64_t channels,
                 const Images<T>& gx, void* scratch) {
  constexpr int P = 2 * M + 1, R = Even ? M : M + 1;
  constexpr StripShape kShape = {2 * M, M, 2 * M, Even ? 0 : 1, 0, 2};
  const int64_t pitch = strip_pitch(block, 2 * M, kLanes<T>);
  T* strips[2] = {static_cast<T*>(scratch), static_cast<T*>(scratch) + R * pitch};
  StripPiece* pieces = reinterpret_cast<StripPiece*>(strips[1] + R * pitch);
  StripPiece* end =
      find_pieces<T>(block, kShape, gx.channels * gx.plane(), gx.height, gx.width, pieces);
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
                          2 * gx.width, down);
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
