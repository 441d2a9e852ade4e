// The arithmetic of the algorithms that work on tiles: SpMM and SDDMM.
//
// Rows of V and M are channels; a row has one value per tile of a block. Two operations:
//
//   SpMM    M[o] = sum over active i of U[o, i] V[i]       (forward, input gradient)
//   SDDMM   dU[o, i] = <D[o], V[i]> for active (o, i)      (weight gradient)
//
// A whole row of a block stays in registers, so a skipped kernel costs nothing at all. SpMM takes
// two output rows at once: where both have the kernel of an input channel, its row of V is
// loaded once for two chains of multiply-adds.
#include "../transpose.h"
#include "../vec.h"
#include "tables.h"

namespace metasparse::cpu::METASPARSE_ISA {

namespace {

// Independent accumulators per register of a row: a block of few registers would otherwise wait for
// the latency of each multiply-add.
template <int N>
inline constexpr int kChains = N == 1   ? 4
                               : N <= 3 ? 2
                                        : 1;

// sum[0 .. N) += u * v[0 .. N), in registers.
template <class T, int N>
METASPARSE_INLINE void add_row(Vec<T>* sum, T u, const T* v) {
  const Vec<T> weight = broadcast(u);
  METASPARSE_UNROLL
  for (int t = 0; t < N; ++t) sum[t] = weight * load(v + t * kLanes<T>) + sum[t];
}

template <class T, int N>
METASPARSE_INLINE void add_row_to_both(Vec<T>* a, Vec<T>* b, T ua, T ub, const T* v) {
  const Vec<T> weight_a = broadcast(ua), weight_b = broadcast(ub);
  METASPARSE_UNROLL
  for (int t = 0; t < N; ++t) {
    const Vec<T> x = in_register<T>(load(v + t * kLanes<T>));
    a[t] = weight_a * x + a[t];
    b[t] = weight_b * x + b[t];
  }
}

// The entries of one output row alone.
template <class T, int N>
METASPARSE_INLINE void add_entries(Vec<T> (*sum)[N], const T* u, const int32_t* source,
                                   int32_t begin, int32_t end, const T* v) {
  constexpr int kWidth = N * kLanes<T>;
  int32_t j = begin;
  for (; j + kChains<N> <= end; j += kChains<N>) {
    METASPARSE_UNROLL
    for (int c = 0; c < kChains<N>; ++c) {
      add_row<T, N>(sum[c], u[j + c], v + static_cast<int64_t>(source[j + c]) * kWidth);
    }
  }
  for (; j < end; ++j) add_row<T, N>(sum[0], u[j], v + static_cast<int64_t>(source[j]) * kWidth);
}

// What is there already is added last: a sum of sums rounds less than one long sum.
template <class T, int N>
METASPARSE_INLINE void store_sum(const Vec<T> (*sum)[N], bool accumulate, T* out) {
  METASPARSE_UNROLL
  for (int t = 0; t < N; ++t) {
    Vec<T> total = sum[0][t];
    METASPARSE_UNROLL
    for (int c = 1; c < kChains<N>; ++c) total += sum[c][t];
    store(out + t * kLanes<T>, accumulate ? load(out + t * kLanes<T>) + total : total);
  }
}

template <class T, int N>
void spmm(const SpmmArgs<T>& args) {
  constexpr int kWidth = N * kLanes<T>;
  constexpr int C = kChains<N>;
  T* out = args.m;
  for (int64_t pair = 0; pair < args.pairs; ++pair, out += 2 * kWidth) {
    const RowPair entries = args.rows[pair];
    const T* u = args.weights + entries.begin;
    const int32_t* source = args.source + entries.begin;
    Vec<T> a[C][N]{}, b[C][N]{};
    int32_t j = 0;
    for (; j + C <= entries.both; j += C, u += 2 * C, source += 2 * C) {
      METASPARSE_UNROLL
      for (int c = 0; c < C; ++c) {
        add_row_to_both<T, N>(a[c], b[c], u[2 * c], u[2 * c + 1],
                              args.v + static_cast<int64_t>(source[2 * c]) * kWidth);
      }
    }
    for (; j < entries.both; ++j, u += 2, source += 2) {
      add_row_to_both<T, N>(a[0], b[0], u[0], u[1],
                            args.v + static_cast<int64_t>(source[0]) * kWidth);
    }
    // The rest of a and the rest of b are independent chains: run them side by side.
    const T* second_u = u + entries.first;
    const int32_t* second_source = source + entries.first;
    const int32_t common = entries.first < entries.second ? entries.first : entries.second;
    for (j = 0; j + C <= common; j += C) {
      METASPARSE_UNROLL
      for (int c = 0; c < C; ++c) {
        add_row<T, N>(a[c], u[j + c], args.v + static_cast<int64_t>(source[j + c]) * kWidth);
        add_row<T, N>(b[c], second_u[j + c],
                      args.v + static_cast<int64_t>(second_source[j + c]) * kWidth);
      }
    }
    add_entries<T, N>(a, u, source, j, entries.first, args.v);
    add_entries<T, N>(b, second_u, second_source, j, entries.second, args.v);
    store_sum<T, N>(a, args.accumulate, out);
    store_sum<T, N>(b, args.accumulate, out + kWidth);
  }
}

// Products of d and one row of V, summed over registers but not over lanes.
template <class T, int N>
METASPARSE_INLINE Vec<T> lanewise_dot(const Vec<T>* d, const T* v) {
  Vec<T> sum = d[0] * load(v);
  METASPARSE_UNROLL
  for (int t = 1; t < N; ++t) sum = d[t] * load(v + t * kLanes<T>) + sum;
  return sum;
}

template <class T, int N>
void sddmm(const SddmmArgs<T>& args) {
  constexpr int kWidth = N * kLanes<T>;
  for (int64_t row = 0; row < args.rows; ++row) {
    int32_t e = args.row_begin[row];
    const int32_t end = args.row_begin[row + 1];
    if (e == end) continue;
    Vec<T> d[N];
    METASPARSE_UNROLL
    for (int t = 0; t < N; ++t) d[t] = load(args.d + row * kWidth + t * kLanes<T>);
    for (; e + kLanes<T> <= end; e += kLanes<T>) {
      Vec<T> sum[kLanes<T>];
      METASPARSE_UNROLL
      for (int j = 0; j < kLanes<T>; ++j) {
        const int64_t source = args.source[e + j];
        sum[j] = lanewise_dot<T, N>(d, args.v + source * kWidth);
      }
      const Vec<T> total = sum_lanes<T, kLanes<T>>(sum);
      T* out = args.out + e;
      store_unaligned(out, args.accumulate ? load_unaligned(out) + total : total);
    }
    if (e < end) {
      Vec<T> sum[kLanes<T>];
      for (int j = 0; j < end - e; ++j) {
        const int64_t source = args.source[e + j];
        sum[j] = lanewise_dot<T, N>(d, args.v + source * kWidth);
      }
      for (int j = end - e; j < kLanes<T>; ++j) sum[j] = Vec<T>{};
      const Lanes rest = lanes_between(0, end - e, kLanes<T>);
      const Vec<T> total = sum_lanes<T, kLanes<T>>(sum);
      T* out = args.out + e;
      store_some(rest, out, args.accumulate ? load_some(rest, out) + total : total);
    }
  }
}

template <class T>
constexpr SparseKernels<T> kTable = {
    {nullptr, spmm<T, 1>, spmm<T, 2>, spmm<T, 3>, spmm<T, 4>, spmm<T, 5>, spmm<T, 6>, spmm<T, 7>,
     spmm<T, 8>},
    {nullptr, sddmm<T, 1>, sddmm<T, 2>, sddmm<T, 3>, sddmm<T, 4>, sddmm<T, 5>, sddmm<T, 6>,
     sddmm<T, 7>, sddmm<T, 8>},
};

}  // namespace

template <class T>
const SparseKernels<T>& sparse_kernels() {
  return kTable<T>;
}

template const SparseKernels<float>& sparse_kernels<float>();
template const SparseKernels<double>& sparse_kernels<double>();

}  // namespace metasparse::cpu::METASPARSE_ISA
