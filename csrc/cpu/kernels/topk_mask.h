#pragma once
// Kernels behind topk_mask on the CPU, one table per instruction set.
//
// The mask of a row is described by its k-th largest value and by how far ties reach: ones are the
// entries above the value, and the entries equal to it before index `cut`. To find the value at the
// speed of memory, a small sample gives a bracket that holds it; one pass over the row counts what
// lies above the bracket and keeps what lies inside (a few per cent); a histogram select on those
// is exact. A second pass writes.
#include <cstdint>

#include "../runtime/isa.h"

namespace metasparse::cpu {

// Unsigned integers ordered like the floats they stand for; -0.0 and +0.0 share one key.
template <class F>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <class F>
using Key = typename KeyOf<F>::type;

template <class F>
struct Bracket {
  F low, high;
};

// How a row, or a piece of one, lies about a bracket. Entries below `low` are the rest.
struct Split {
  int64_t above = 0, at_high = 0, inside = 0, at_low = 0;
  bool nan = false;
};

// A value of a set, and how many entries of the set are greater than it and equal to it.
template <class F>
struct Ranked {
  F value;
  int64_t greater, equal;
};

template <class F>
struct TopkMaskKernels {
  // A bracket that very likely holds the k-th largest of the n entries (1 <= k <= n); scratch holds
  // n keys.
  Bracket<F> (*guess)(const F* x, int64_t n, int64_t k, Key<F>* scratch);
  // Counts the entries about the bracket (n < 2^31) and stores the keys of those strictly inside,
  // in any order.
  Split (*split)(const F* x, int64_t n, Bracket<F> bracket, Key<F>* inside);
  // The k-th largest of n keys, 1 <= k <= n. Overwrites the keys.
  Ranked<F> (*select)(Key<F>* keys, int64_t n, int64_t k);
  // One past the index of the ties-th entry equal to value, which exists; ties >= 1.
  int64_t (*find_cut)(const F* x, int64_t n, F value, int64_t ties);
  // mask = 1 where x > value, or where ties_in and x == value; else 0.
  void (*write)(const F* x, int64_t n, F value, bool ties_in, F* mask);
};

struct TopkMaskTable {
  TopkMaskKernels<float> f32;
  TopkMaskKernels<double> f64;
};

}  // namespace metasparse::cpu

METASPARSE_PER_ISA(extern const TopkMaskTable topk_mask;)
