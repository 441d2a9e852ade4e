// Rows of tiles between memory, where the M elements of a tile are neighbours, and registers, where
// one vector holds the same element of as many tiles as it has lanes.
#pragma once

#include "../interleave.h"
#include "../transpose.h"
#include "../vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

#if defined(METASPARSE_HALVES)

// The halves are loaded as they are wanted, tiles 0 .. 3 in the lower ones and 4 .. 7 in the upper,
// so that four columns of eight tiles are two 4x4 transposes side by side.
template <int M>
METASPARSE_INLINE void load_four_columns(const float* p, Vec<float>* out) {
  Vec<float> in[4];
  METASPARSE_UNROLL
  for (int k = 0; k < 4; ++k) {
    in[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + k * M)),
                                 _mm_loadu_ps(p + (k + 4) * M), 1);
  }
  transpose_halves(in, out);
}

// Tile after tile: where M is 3, the next tile overwrites the fourth column of the one before.
template <int M>
METASPARSE_INLINE void store_four_columns(float* p, const Vec<float>* in) {
  Vec<float> tiles[4];
  transpose_halves(in, tiles);
  METASPARSE_UNROLL
  for (int k = 0; k < 4; ++k) _mm_storeu_ps(p + k * M, _mm256_castps256_ps128(tiles[k]));
  METASPARSE_UNROLL
  for (int k = 0; k < 4; ++k) {
    _mm_storeu_ps(p + (k + 4) * M, _mm256_extractf128_ps(tiles[k], 1));
  }
}

// Both columns of four tiles are in two neighbouring 128-bit blocks.
METASPARSE_INLINE void load_two_columns(const float* p, Vec<float>* out) {
  Vec<float> in[2];
  METASPARSE_UNROLL
  for (int k = 0; k < 2; ++k) {
    in[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4 * k)),
                                 _mm_loadu_ps(p + 4 * k + 8), 1);
  }
  out[0] = _mm256_shuffle_ps(in[0], in[1], 0x88);
  out[1] = _mm256_shuffle_ps(in[0], in[1], 0xdd);
}

template <int M>
METASPARSE_INLINE void load_halves(const float* p, Vec<float>* out) {
  if constexpr (M == 2) {
    load_two_columns(p, out);
  } else {
    Vec<float> columns[4];
    load_four_columns<M>(p, columns);
    METASPARSE_UNROLL
    for (int j = 0; j < 4 && j < M; ++j) out[j] = columns[j];
    if constexpr (M > 4) {  // the last four, of which some are there already
      load_four_columns<M>(p + M - 4, columns);
      METASPARSE_UNROLL
      for (int j = 4; j < M; ++j) out[j] = columns[j - (M - 4)];
    }
  }
}

template <int M>
METASPARSE_INLINE void store_halves(float* p, const Vec<float>* in) {
  const Vec<float> first[4] = {in[0], in[1], in[2], M > 3 ? in[M > 3 ? 3 : 0] : Vec<float>{}};
  store_four_columns<M>(p, first);
  if constexpr (M > 4) store_four_columns<M>(p + M - 4, in + M - 4);
}

#endif

// out[j] = element j of each tile, which lies at p[l * M + j] for the tile of lane l. May read up
// to three values past the last tile, and ignores what it finds there.
template <class T, int M>
METASPARSE_INLINE void load_tiles(const T* p, Vec<T>* out) {
#if defined(METASPARSE_HALVES)
  if constexpr (sizeof(T) == 4 && M >= 2) return load_halves<M>(p, out);
#endif
  Vec<T> in[M];
  METASPARSE_UNROLL
  for (int j = 0; j < M; ++j) in[j] = load(p + j * kLanes<T>);
  deinterleave<T, M>(in, out);
}

// The inverse of load_tiles. May write up to three values past the last tile.
template <class T, int M>
METASPARSE_INLINE void store_tiles(T* p, const Vec<T>* in) {
#if defined(METASPARSE_HALVES)
  if constexpr (sizeof(T) == 4 && M >= 3) return store_halves<M>(p, in);
#endif
  Vec<T> out[M];
  interleave<T, M>(in, out);
  METASPARSE_UNROLL
  for (int j = 0; j < M; ++j) store(p + j * kLanes<T>, out[j]);
}

}  // namespace metasparse::cpu::METASPARSE_ISA
