// Products with all kernels, pruned ones as zeros, where skipping does not pay.
//
//   dense   dU[o, i] = <D[o], V[i]> for all (o, i)       (weight gradient)
//   outer   M[o] = sum over all i of U[o, i] V[i]        (forward, input gradient) of few tiles
//
// Both put channels into the lanes, where the others have tiles.
#include "conv_tables.h"
#include "squares.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// ---- sampled, where all kernels are wanted -----------------------------------------------------
// Nothing is skipped, so lanes need not be summed: V is transposed, columns into the lanes, and
// each value of d is broadcast.

// Rows of d, and registers of columns, that are summed at once; AVX-512 has the registers for twice
// as many as the others.
constexpr int kDenseRows = 4;
template <class T>
inline constexpr int kDenseVectors = sizeof(Vec<T>) == 64 ? 4 : 2;

// vt[lane][C registers] = columns column .. of V, zeros past the end.
template <class T, int N, int C>
METASPARSE_INLINE void transpose_columns(const DenseStep<T>& step, int64_t column, T* vt) {
  constexpr int L = kLanes<T>;
  for (int c = 0; c < C; ++c) {
    for (int t = 0; t < N; ++t) {
      Vec<T> square[L];
      for (int l = 0; l < L; ++l) {
        const int64_t row = column + c * L + l;
        square[l] = row < step.columns ? load(step.v + (row * N + t) * L) : Vec<T>{};
      }
      transpose<T>(square);
      METASPARSE_UNROLL
      for (int l = 0; l < L; ++l) store(vt + ((t * L + l) * C + c) * L, square[l]);
    }
  }
}

template <class T, int N, int C>
void dense_columns(const DenseStep<T>& step, int64_t column) {
  constexpr int L = kLanes<T>, kWidth = N * L;
  alignas(64) T vt[kWidth * C * L];
  transpose_columns<T, N, C>(step, column, vt);
  const bool whole = column + C * L <= step.columns;
  for (int64_t row = 0; row < step.rows; row += kDenseRows) {
    const T* d[kDenseRows];  // past the end the last row is repeated, and not written
    for (int r = 0; r < kDenseRows; ++r) {
      d[r] = step.d + (row + r < step.rows ? row + r : step.rows - 1) * kWidth;
    }
    Vec<T> sum[kDenseRows][C] = {};
    for (int lane = 0; lane < kWidth; ++lane) {
      Vec<T> x[C];
      METASPARSE_UNROLL
      for (int c = 0; c < C; ++c) x[c] = in_register<T>(load(vt + (lane * C + c) * L));
      METASPARSE_UNROLL
      for (int r = 0; r < kDenseRows; ++r) {
        const Vec<T> y = broadcast(d[r][lane]);
        METASPARSE_UNROLL
        for (int c = 0; c < C; ++c) sum[r][c] = y * x[c] + sum[r][c];
      }
    }
    METASPARSE_UNROLL
    for (int r = 0; r < kDenseRows; ++r) {
      if (row + r >= step.rows) continue;
      T* out = step.out + (row + r) * step.columns + column;
      METASPARSE_UNROLL
      for (int c = 0; c < C; ++c) {
        T* place = out + c * L;
        if (whole) {
          store_unaligned(place, step.accumulate ? load_unaligned(place) + sum[r][c] : sum[r][c]);
        } else {
          const Lanes some = lanes_between(0, step.columns - column - c * L, L);
          store_some(some, place, step.accumulate ? load_some(some, place) + sum[r][c] : sum[r][c]);
        }
      }
    }
  }
}

template <class T, int N>
void dense(const DenseStep<T>& step) {
  constexpr int kMost = kDenseVectors<T>;
  int64_t column = 0;
  for (; column + kMost * kLanes<T> <= step.columns; column += kMost * kLanes<T>) {
    dense_columns<T, N, kMost>(step, column);
  }
  const int64_t rest = (step.columns - column + kLanes<T> - 1) / kLanes<T>;
  if (rest == 1) dense_columns<T, N, 1>(step, column);
  if (rest == 2) dense_columns<T, N, 2>(step, column);
  if constexpr (kMost == 4) {
    if (rest == 3) dense_columns<T, N, 3>(step, column);
    if (rest == 4) dense_columns<T, N, 4>(step, column);
  }
}

// ---- product of few tiles ----------------------------------------------------------------------
// A register of V holds one row's tiles; where these are few, most lanes would compute nothing.

// Rows of M, in registers, that are summed at once: as many as there are registers for.
template <class T, int Tiles>
inline constexpr int kOuterVectors = sizeof(Vec<T>) == 64 || Tiles <= 6 ? 2 : 1;

// G registers of rows from `row` on. The squares' columns past the last tile are zero.
template <class T, int Tiles, int G>
METASPARSE_INLINE void outer_rows(const OuterStep<T>& step, int64_t row) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[G][L] = {};
  const T* u = step.weights + row;
  const T* v = step.v;
  for (int64_t column = 0; column < step.columns; ++column, u += step.stride, v += L) {
    Vec<T> weight[G];
    METASPARSE_UNROLL
    for (int g = 0; g < G; ++g) weight[g] = in_register<T>(load_unaligned(u + g * L));
    METASPARSE_UNROLL
    for (int tile = 0; tile < Tiles; ++tile) {
      const Vec<T> x = broadcast(v[tile]);
      METASPARSE_UNROLL
      for (int g = 0; g < G; ++g) sum[g][tile] = weight[g] * x + sum[g][tile];
    }
  }
  METASPARSE_UNROLL
  for (int g = 0; g < G; ++g) {
    transpose<T>(sum[g]);
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) {
      T* out = step.m + (row + g * L + l) * L;
      if (row + g * L + l >= step.rows) break;
      store(out, step.accumulate ? load(out) + sum[g][l] : sum[g][l]);
    }
  }
}

template <class T, int Tiles>
void outer(const OuterStep<T>& step) {
  constexpr int L = kLanes<T>, G = kOuterVectors<T, Tiles>;
  int64_t row = 0;
  for (; row + (G - 1) * L < step.rows; row += G * L) outer_rows<T, Tiles, G>(step, row);
  for (; row < step.rows; row += L) outer_rows<T, Tiles, 1>(step, row);
}

template <class T, size_t... Tiles>
constexpr DenseKernels<T> table(std::index_sequence<Tiles...>) {
  return {{nullptr, dense<T, 1>, dense<T, 2>, dense<T, 3>, dense<T, 4>, dense<T, 5>, dense<T, 6>,
           dense<T, 7>, dense<T, 8>},
          {nullptr, outer<T, static_cast<int>(Tiles) + 1>...}};
}

template <class T>
constexpr DenseKernels<T> kTable = table<T>(std::make_index_sequence<kLanes<T>>());

}  // namespace

template <class T>
const DenseKernels<T>& dense_kernels() {
  return kTable<T>;
}

template const DenseKernels<float>& dense_kernels<float>();
template const DenseKernels<double>& dense_kernels<double>();

}  // namespace metasparse::cpu::METASPARSE_ISA
