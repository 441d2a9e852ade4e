// Vectors of neighbours in memory, and vectors of the same element of neighbouring groups of M.
#pragma once

#include <stddef.h>

#include <utility>

#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

// Element j of M neighbours, for one vector of tiles: M vectors hold L*M values of memory in order;
// value l*M + j is element j of tile l. The source of lane l of result j is built up vector by
// vector: step s takes lanes from vector s and keeps what is there of the earlier ones.
template <int L, int M, int J, int S>
struct DeinterleavePattern {
  static constexpr int at(int lane) {
    const int value = lane * M + J;
    if (S == 1) return value < 2 * L ? value : lane;  // straight from vectors 0 and 1
    return value / L == S ? L + value % L : lane;
  }
};

template <int L, int M, int C, int S>
struct InterleavePattern {
  static constexpr int at(int lane) {
    const int value = C * L + lane;
    const int element = value % M;
    const int tile = value / M;
    if (S == 1) return element == 0 ? tile : element == 1 ? L + tile : lane;
    return element == S ? L + tile : lane;
  }
};

template <class T, int M, int J, size_t... S>
METASPARSE_INLINE Vec<T> deinterleave_one(const Vec<T>* in, std::index_sequence<S...>) {
  Vec<T> out = in[0];
  ((out =
        shuffle<DeinterleavePattern<kLanes<T>, M, J, static_cast<int>(S) + 1>, T>(out, in[S + 1])),
   ...);
  return out;
}

template <class T, int M, size_t... J>
METASPARSE_INLINE void deinterleave_all(const Vec<T>* in, Vec<T>* out, std::index_sequence<J...>) {
  ((out[J] = deinterleave_one<T, M, static_cast<int>(J)>(in, std::make_index_sequence<M - 1>())),
   ...);
}

template <class T, int M, int C, size_t... S>
METASPARSE_INLINE Vec<T> interleave_one(const Vec<T>* in, std::index_sequence<S...>) {
  Vec<T> out = in[0];
  ((out = shuffle<InterleavePattern<kLanes<T>, M, C, static_cast<int>(S) + 1>, T>(out, in[S + 1])),
   ...);
  return out;
}

template <class T, int M, size_t... C>
METASPARSE_INLINE void interleave_all(const Vec<T>* in, Vec<T>* out, std::index_sequence<C...>) {
  ((out[C] = interleave_one<T, M, static_cast<int>(C)>(in, std::make_index_sequence<M - 1>())),
   ...);
}

// out[j] = element j of every tile, from M vectors in memory order (M >= 1).
template <class T, int M>
METASPARSE_INLINE void deinterleave(const Vec<T>* in, Vec<T>* out) {
  if constexpr (M == 1) {
    out[0] = in[0];
  } else if constexpr (M > 2 &&
                       M % 2 == 0) {  // by two, then either half: M = 4 has 8 shuffles for 12
    constexpr int H = M / 2;
    Vec<T> even[H], odd[H], half[H];
    METASPARSE_UNROLL
    for (int h = 0; h < H; ++h) {
      Vec<T> pair[2];
      deinterleave<T, 2>(in + 2 * h, pair);
      even[h] = pair[0];
      odd[h] = pair[1];
    }
    deinterleave<T, H>(even, half);
    METASPARSE_UNROLL
    for (int h = 0; h < H; ++h) out[2 * h] = half[h];
    deinterleave<T, H>(odd, half);
    METASPARSE_UNROLL
    for (int h = 0; h < H; ++h) out[2 * h + 1] = half[h];
  } else {
    deinterleave_all<T, M>(in, out, std::make_index_sequence<M>());
  }
}

// The inverse of deinterleave.
template <class T, int M>
METASPARSE_INLINE void interleave(const Vec<T>* in, Vec<T>* out) {
  if constexpr (M == 1) {
    out[0] = in[0];
  } else if constexpr (M > 2 && M % 2 == 0) {
    constexpr int H = M / 2;
    Vec<T> even[H], odd[H], half[H];
    METASPARSE_UNROLL
    for (int h = 0; h < H; ++h) half[h] = in[2 * h];
    interleave<T, H>(half, even);
    METASPARSE_UNROLL
    for (int h = 0; h < H; ++h) half[h] = in[2 * h + 1];
    interleave<T, H>(half, odd);
    METASPARSE_UNROLL
    for (int h = 0; h < H; ++h) {
      const Vec<T> pair[2] = {even[h], odd[h]};
      interleave<T, 2>(pair, out + 2 * h);
    }
  } else {
    interleave_all<T, M>(in, out, std::make_index_sequence<M>());
  }
}

}  // namespace metasparse::cpu::METASPARSE_ISA
