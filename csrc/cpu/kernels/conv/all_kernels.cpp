// SpMM and SDDMM over all kernels, pruned ones as zeros, where skipping does not pay.
//
//   SDDMM   dU[o, i] = <D[o], V[i]> for all (o, i)       (weight gradient)
//   SpMM    M[o] = sum over all i of U[o, i] V[i]        (forward, input gradient) of few tiles
//
// Both put channels into the lanes, where the others have tiles.
#include "../transpose.h"
#include "../vec.h"
#include "tables.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// ---- SDDMM -------------------------------------------------------------------------------------
// Nothing is skipped, so lanes need not be summed: V is transposed, sources into the lanes, and
// each value of d is broadcast.

// Rows of d, and registers of sources, that are summed at once; AVX-512 has the registers for twice
// as many as the others.
constexpr int kDenseRows = 4;
template <class T>
inline constexpr int kDenseVectors = sizeof(Vec<T>) == 64 ? 4 : 2;

// vt[lane][C registers] = the sources from `first` on of V, zeros past the end.
template <class T, int N, int C>
METASPARSE_INLINE void transpose_sources(const DenseSddmmArgs<T>& args, int64_t first, T* vt) {
  constexpr int L = kLanes<T>;
  for (int c = 0; c < C; ++c) {
    for (int t = 0; t < N; ++t) {
      Vec<T> block[L];
      for (int l = 0; l < L; ++l) {
        const int64_t row = first + c * L + l;
        block[l] = row < args.sources ? load(args.v + (row * N + t) * L) : Vec<T>{};
      }
      transpose<T>(block);
      METASPARSE_UNROLL
      for (int l = 0; l < L; ++l) store(vt + ((t * L + l) * C + c) * L, block[l]);
    }
  }
}

template <class T, int N, int C>
void sddmm_sources(const DenseSddmmArgs<T>& args, int64_t first) {
  constexpr int L = kLanes<T>, kWidth = N * L;
  alignas(64) T vt[kWidth * C * L];
  transpose_sources<T, N, C>(args, first, vt);
  const bool whole = first + C * L <= args.sources;
  for (int64_t row = 0; row < args.rows; row += kDenseRows) {
    const T* d[kDenseRows];  // past the end the last row is repeated, and not written
    for (int r = 0; r < kDenseRows; ++r) {
      d[r] = args.d + (row + r < args.rows ? row + r : args.rows - 1) * kWidth;
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
      if (row + r >= args.rows) continue;
      T* out = args.out + (row + r) * args.sources + first;
      METASPARSE_UNROLL
      for (int c = 0; c < C; ++c) {
        T* place = out + c * L;
        if (whole) {
          store_unaligned(place, args.accumulate ? load_unaligned(place) + sum[r][c] : sum[r][c]);
        } else {
          const Lanes some = lanes_between(0, args.sources - first - c * L, L);
          store_some(some, place, args.accumulate ? load_some(some, place) + sum[r][c] : sum[r][c]);
        }
      }
    }
  }
}

template <class T, int N>
void sddmm(const DenseSddmmArgs<T>& args) {
  constexpr int kMost = kDenseVectors<T>;
  int64_t first = 0;
  for (; first + kMost * kLanes<T> <= args.sources; first += kMost * kLanes<T>) {
    sddmm_sources<T, N, kMost>(args, first);
  }
  const int64_t rest = (args.sources - first + kLanes<T> - 1) / kLanes<T>;
  if (rest == 1) sddmm_sources<T, N, 1>(args, first);
  if (rest == 2) sddmm_sources<T, N, 2>(args, first);
  if constexpr (kMost == 4) {
    if (rest == 3) sddmm_sources<T, N, 3>(args, first);
    if (rest == 4) sddmm_sources<T, N, 4>(args, first);
  }
}

// ---- SpMM of few tiles -------------------------------------------------------------------------
// A register of V holds one row's tiles; where these are few, most lanes would compute nothing.

// Rows of M, in registers, that are summed at once: as many as there are registers for.
template <class T, int Tiles>
inline constexpr int kChannelVectors = sizeof(Vec<T>) == 64 || Tiles <= 6 ? 2 : 1;

// G registers of rows from `row` on. Sums past the last tile are zero.
template <class T, int Tiles, int G>
METASPARSE_INLINE void spmm_rows(const DenseSpmmArgs<T>& args, int64_t row) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[G][L] = {};
  const T* u = args.weights + row;
  const T* v = args.v;
  for (int64_t source = 0; source < args.sources; ++source, u += args.stride, v += L) {
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
      T* out = args.m + (row + g * L + l) * L;
      if (row + g * L + l >= args.rows) break;
      store(out, args.accumulate ? load(out) + sum[g][l] : sum[g][l]);
    }
  }
}

template <class T, int Tiles>
void spmm(const DenseSpmmArgs<T>& args) {
  constexpr int L = kLanes<T>, G = kChannelVectors<T, Tiles>;
  int64_t row = 0;
  for (; row + (G - 1) * L < args.rows; row += G * L) spmm_rows<T, Tiles, G>(args, row);
  for (; row < args.rows; row += L) spmm_rows<T, Tiles, 1>(args, row);
}

template <class T, size_t... Tiles>
constexpr DenseKernels<T> table(std::index_sequence<Tiles...>) {
  return {{nullptr, sddmm<T, 1>, sddmm<T, 2>, sddmm<T, 3>, sddmm<T, 4>, sddmm<T, 5>, sddmm<T, 6>,
           sddmm<T, 7>, sddmm<T, 8>},
          {nullptr, spmm<T, static_cast<int>(Tiles) + 1>...}};
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
