// As many vectors as a vector has lanes: transposed, or each summed to one lane.
#pragma once

#include "interleave.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

#if defined(METASPARSE_HALVES)

// Two 4x4 transposes side by side, of the lower halves and of the upper ones.
METASPARSE_INLINE void transpose_halves(const Vec<float>* in, Vec<float>* out) {
  const __m256 low01 = _mm256_unpacklo_ps(in[0], in[1]), low23 = _mm256_unpacklo_ps(in[2], in[3]);
  const __m256 high01 = _mm256_unpackhi_ps(in[0], in[1]), high23 = _mm256_unpackhi_ps(in[2], in[3]);
  out[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  out[1] = _mm256_shuffle_ps(low01, low23, 0xee);
  out[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  out[3] = _mm256_shuffle_ps(high01, high23, 0xee);
}

#endif

// Transposes L vectors of L lanes: each level interleaves the two halves.
template <class T>
METASPARSE_INLINE void transpose(Vec<T>* v) {
  constexpr int L = kLanes<T>;
#if defined(METASPARSE_HALVES)
  if constexpr (L == 8) {
    Vec<T> upper[4], lower[4];
    transpose_halves(v, upper);
    transpose_halves(v + 4, lower);
    METASPARSE_UNROLL
    for (int j = 0; j < 4; ++j) {
      v[j] = _mm256_permute2f128_ps(upper[j], lower[j], 0x20);
      v[j + 4] = _mm256_permute2f128_ps(upper[j], lower[j], 0x31);
    }
    return;
  }
#endif
  METASPARSE_UNROLL
  for (int level = 1; level < L; level *= 2) {
    Vec<T> next[L];
    METASPARSE_UNROLL
    for (int i = 0; i < L / 2; ++i) {
      const Vec<T> pair[2] = {v[i], v[i + L / 2]};
      interleave<T, 2>(pair, next + 2 * i);
    }
    METASPARSE_UNROLL
    for (int i = 0; i < L; ++i) v[i] = next[i];
  }
}

// Sums of L vectors, lane l of the result being the sum of vector l. Each level adds neighbouring
// lanes of pairs of vectors: within 128-bit blocks first, where shuffles are cheap, then blocks.
template <class T, int Odd>
struct NeighbourPattern {  // elements 2e + Odd of the same 128-bit block of a, then of b
  static constexpr int at(int lane) {
    constexpr int kBlock = 16 / static_cast<int>(sizeof(T));
    const int block = lane / kBlock, e = lane % kBlock;
    const int index = 2 * e + Odd;
    return index < kBlock ? block * kBlock + index : kLanes<T> + block * kBlock + index - kBlock;
  }
};

template <class T, int Odd>
struct BlockPattern {  // 128-bit blocks 2q + Odd of a, then of b
  static constexpr int at(int lane) {
    constexpr int kBlock = 16 / static_cast<int>(sizeof(T));
    return (2 * (lane / kBlock) + Odd) * kBlock + lane % kBlock;
  }
};

template <class T, int N>
METASPARSE_INLINE Vec<T> sum_lanes(Vec<T>* v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    constexpr bool kWithin = kLanes<T> / N < 16 / static_cast<int>(sizeof(T));
    METASPARSE_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      const Vec<T> a = v[2 * i], b = v[2 * i + 1];
      if constexpr (kWithin) {
        v[i] = shuffle<NeighbourPattern<T, 0>, T>(a, b) + shuffle<NeighbourPattern<T, 1>, T>(a, b);
      } else {
        v[i] = shuffle<BlockPattern<T, 0>, T>(a, b) + shuffle<BlockPattern<T, 1>, T>(a, b);
      }
    }
    return sum_lanes<T, N / 2>(v);
  }
}

}  // namespace metasparse::cpu::METASPARSE_ISA
