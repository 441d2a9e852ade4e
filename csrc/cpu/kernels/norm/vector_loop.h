// Loops over stretches of contiguous values, a vector at a time and a part of one at the end.
#pragma once

#include "../interleave.h"
#include "gate_codes.h"

namespace metasparse::cpu::METASPARSE_ISA {

// A vector of values in memory, or, at the end of a row, the first `count` values of one.
template <class T>
struct Whole {
  METASPARSE_INLINE Vec<T> load(const T* p) const { return load_unaligned(p); }
  METASPARSE_INLINE void store(T* p, Vec<T> v) const { store_unaligned(p, v); }
  METASPARSE_INLINE Vec<T> only(Vec<T> v) const { return v; }

  METASPARSE_INLINE CodeVec<T> load_codes(const uint8_t* p) const {
    return METASPARSE_ISA::load_codes<T>(p);
  }
  METASPARSE_INLINE void store_codes(uint8_t* p, CodeVec<T> codes) const {
    METASPARSE_ISA::store_codes<T>(p, codes);
  }

  // Twice as many values, those of even and of odd place apart.
  METASPARSE_INLINE void load_pairs(const T* p, Vec<T>* even_odd) const {
    const Vec<T> in[2] = {load_unaligned(p), load_unaligned(p + kLanes<T>)};
    deinterleave<T, 2>(in, even_odd);
  }
  METASPARSE_INLINE void store_pairs(T* p, const Vec<T>* even_odd) const {
    Vec<T> out[2];
    interleave<T, 2>(even_odd, out);
    store_unaligned(p, out[0]);
    store_unaligned(p + kLanes<T>, out[1]);
  }
};

// A whole vector of results that go past the caches.
template <class T>
struct Streamed : Whole<T> {
  METASPARSE_INLINE void store(T* p, Vec<T> v) const { store_streamed(p, v); }
};

template <class T>
struct Part {
  int64_t count;

  METASPARSE_INLINE Lanes first(int64_t values) const {
    return lanes_between(0, values, kLanes<T>);
  }
  METASPARSE_INLINE Vec<T> load(const T* p) const { return load_some(first(count), p); }
  METASPARSE_INLINE void store(T* p, Vec<T> v) const { store_some(first(count), p, v); }
  METASPARSE_INLINE Vec<T> only(Vec<T> v) const {
    return blend(lane_mask<T>(first(count)), v, Vec<T>{});
  }

  METASPARSE_INLINE CodeVec<T> load_codes(const uint8_t* p) const {
    return METASPARSE_ISA::load_codes<T>(p, static_cast<int>(count));
  }
  METASPARSE_INLINE void store_codes(uint8_t* p, CodeVec<T> codes) const {
    METASPARSE_ISA::store_codes<T>(p, codes, static_cast<int>(count));
  }

  METASPARSE_INLINE void load_pairs(const T* p, Vec<T>* even_odd) const {
    const Vec<T> in[2] = {load_some(first(2 * count), p),
                          load_some(first(2 * count - kLanes<T>), p + kLanes<T>)};
    deinterleave<T, 2>(in, even_odd);
  }
  METASPARSE_INLINE void store_pairs(T* p, const Vec<T>* even_odd) const {
    Vec<T> out[2];
    interleave<T, 2>(even_odd, out);
    store_some(first(2 * count), p, out[0]);
    store_some(first(2 * count - kLanes<T>), p + kLanes<T>, out[1]);
  }
};

// body(i, at, chain) for every vector of [0, count); the chains 0 and 1 are for sums, whose
// additions would otherwise wait for each other.
template <class T, class At = Whole<T>, class Body>
METASPARSE_INLINE void each_vector(int64_t count, Body&& body) {
  constexpr int kStep = kLanes<T>;
  int64_t i = 0;
  for (; i + 2 * kStep <= count; i += 2 * kStep) {
    body(i, At(), 0);
    body(i + kStep, At(), 1);
  }
  if (i + kStep <= count) {
    body(i, At(), 0);
    i += kStep;
  }
  if (i < count) body(i, Part<T>{count - i}, 1);
}

// The same where `body` stores results with `at`: past the caches, to aligned places, or to them.
template <class T, class Body>
METASPARSE_INLINE void each_result(bool stream, int64_t count, Body&& body) {
  if (stream) return each_vector<T, Streamed<T>>(count, body);
  each_vector<T>(count, body);
}

// A sum over a channel: in T over a stretch of memory, in double over stretches.
template <class T>
struct Sum {
  double lane[kLanes<T>] = {};

  METASPARSE_INLINE void add(const Vec<T>* chains) {
    const Vec<T> v = chains[0] + chains[1];
    METASPARSE_UNROLL
    for (int l = 0; l < kLanes<T>; ++l) lane[l] += static_cast<double>(v[l]);
  }
  double total() const {
    double sum = 0;
    for (int l = 0; l < kLanes<T>; ++l) sum += lane[l];
    return sum;
  }
};

}  // namespace metasparse::cpu::METASPARSE_ISA
