// The vectors that the kernels are written in.
//
// Vec<T> is as many T as one register of the instruction set holds, a GCC/Clang vector type: +, -,
// * and a * b + c (one rounding where the CPU has it) work on it directly. This file adds what the
// operators lack: unaligned, masked and strided access, and the few shuffles that move between
// "neighbours in memory" and "the same element of neighbouring tiles".
//
// It is included only by files of this folder. Everything lives in the namespace of the instruction
// set it is compiled for, so that no linker can put an AVX-512 body in place of a baseline one; for
// the same reason those files use no function of the standard library.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef METASPARSE_ISA
#define METASPARSE_ISA baseline
#endif

#define METASPARSE_INLINE inline __attribute__((always_inline))
#define METASPARSE_BODY __attribute__((always_inline))  // of a lambda
#define METASPARSE_UNROLL _Pragma("GCC unroll 32")

namespace metasparse::cpu::METASPARSE_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};

template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// ---- whole vectors -----------------------------------------------------------------------------

template <class T>
METASPARSE_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

template <class T>
METASPARSE_INLINE Vec<T> load(const T* p) {  // aligned to the vector
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <class T>
METASPARSE_INLINE void store(T* p, Vec<T> v) {  // aligned to the vector
  *reinterpret_cast<Vec<T>*>(p) = v;
}

template <class T>
METASPARSE_INLINE Vec<T> load_unaligned(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}

template <class T>
METASPARSE_INLINE void store_unaligned(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}

// The same value, which the compiler may no longer read from memory once for each of its uses.
template <class T>
METASPARSE_INLINE Vec<T> in_register(Vec<T> v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// ---- some lanes: bit l of a Lanes set says that lane l takes part ------------------------------

using Lanes = uint32_t;

// Lanes begin .. end-1, both cut to [0, count).
METASPARSE_INLINE Lanes lanes_between(int64_t begin, int64_t end, int count) {
  const int64_t b = begin < 0 ? 0 : begin > count ? count : begin;
  const int64_t e = end < b ? b : end > count ? count : end;
  return static_cast<Lanes>((uint64_t{1} << e) - (uint64_t{1} << b));
}

template <class T>
inline constexpr Lanes kAllLanes = static_cast<Lanes>((uint64_t{1} << kLanes<T>)-1);

#if defined(__AVX512F__)

METASPARSE_INLINE Vec<float> load_some(Lanes lanes, const float* p) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), p);
}
METASPARSE_INLINE Vec<double> load_some(Lanes lanes, const double* p) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(lanes), p);
}
METASPARSE_INLINE void store_some(Lanes lanes, float* p, Vec<float> v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(lanes), v);
}
METASPARSE_INLINE void store_some(Lanes lanes, double* p, Vec<double> v) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(lanes), v);
}
METASPARSE_INLINE Vec<float> select(Lanes lanes, Vec<float> yes, Vec<float> no) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(lanes), no, yes);
}
METASPARSE_INLINE Vec<double> select(Lanes lanes, Vec<double> yes, Vec<double> no) {
  return _mm512_mask_blend_pd(static_cast<__mmask8>(lanes), no, yes);
}

#elif defined(__AVX2__)

METASPARSE_INLINE __m256i lane_mask32(Lanes lanes) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bit), bit);
}
METASPARSE_INLINE __m256i lane_mask64(Lanes lanes) {
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(lanes), bit), bit);
}
METASPARSE_INLINE Vec<float> load_some(Lanes lanes, const float* p) {
  return _mm256_maskload_ps(p, lane_mask32(lanes));
}
METASPARSE_INLINE Vec<double> load_some(Lanes lanes, const double* p) {
  return _mm256_maskload_pd(p, lane_mask64(lanes));
}
// AMD's cores take a dozen cycles for a masked store: it is the last resort.
METASPARSE_INLINE void store_some(Lanes lanes, float* p, Vec<float> v) {
  if (lanes == kAllLanes<float>) return store_unaligned(p, v);
  if ((lanes & (lanes + 1)) != 0) return _mm256_maskstore_ps(p, lane_mask32(lanes), v);
  __m128 rest = _mm256_castps256_ps128(v);  // the first few lanes
  if (lanes & 8) {
    _mm_storeu_ps(p, rest);
    rest = _mm256_extractf128_ps(v, 1);
    p += 4;
    lanes >>= 4;
  }
  if (lanes & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
    rest = _mm_movehl_ps(rest, rest);
    p += 2;
    lanes >>= 2;
  }
  if (lanes & 1) _mm_store_ss(p, rest);
}
METASPARSE_INLINE void store_some(Lanes lanes, double* p, Vec<double> v) {
  if (lanes == kAllLanes<double>) return store_unaligned(p, v);
  _mm256_maskstore_pd(p, lane_mask64(lanes), v);
}
METASPARSE_INLINE Vec<float> select(Lanes lanes, Vec<float> yes, Vec<float> no) {
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(lane_mask32(lanes)));
}
METASPARSE_INLINE Vec<double> select(Lanes lanes, Vec<double> yes, Vec<double> no) {
  return _mm256_blendv_pd(no, yes, _mm256_castsi256_pd(lane_mask64(lanes)));
}

#else

template <class T>
METASPARSE_INLINE Vec<T> load_some(Lanes lanes, const T* p) {
  if (lanes == kAllLanes<T>) return load_unaligned(p);
  Vec<T> v{};
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<T>; ++l) {
    if (lanes >> l & 1) v[l] = p[l];
  }
  return v;
}
template <class T>
METASPARSE_INLINE void store_some(Lanes lanes, T* p, Vec<T> v) {
  if (lanes == kAllLanes<T>) return store_unaligned(p, v);
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<T>; ++l) {
    if (lanes >> l & 1) p[l] = v[l];
  }
}
METASPARSE_INLINE Vec<float> select(Lanes lanes, Vec<float> yes, Vec<float> no) {
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<float>; ++l) no[l] = lanes >> l & 1 ? yes[l] : no[l];
  return no;
}
METASPARSE_INLINE Vec<double> select(Lanes lanes, Vec<double> yes, Vec<double> no) {
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<double>; ++l) no[l] = lanes >> l & 1 ? yes[l] : no[l];
  return no;
}

#endif

// ---- shuffles ----------------------------------------------------------------------------------
// A pattern P gives, for lane l of the result, the index P::at(l) into the lanes of a followed by
// those of b.

template <class P, class V, size_t... L>
METASPARSE_INLINE V shuffle_lanes(V a, V b, std::index_sequence<L...>) {
  return __builtin_shufflevector(a, b, P::at(static_cast<int>(L))...);
}

template <class P, class T>
METASPARSE_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle_lanes<P>(a, b, std::make_index_sequence<static_cast<size_t>(kLanes<T>)>());
}

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
  } else if constexpr (M == 4) {  // twice by two: 8 shuffles instead of 12
    Vec<T> even[2], odd[2], pair[2];
    deinterleave<T, 2>(in, pair);
    even[0] = pair[0], odd[0] = pair[1];
    deinterleave<T, 2>(in + 2, pair);
    even[1] = pair[0], odd[1] = pair[1];
    deinterleave<T, 2>(even, pair);
    out[0] = pair[0], out[2] = pair[1];
    deinterleave<T, 2>(odd, pair);
    out[1] = pair[0], out[3] = pair[1];
  } else {
    deinterleave_all<T, M>(in, out, std::make_index_sequence<M>());
  }
}

// The inverse of deinterleave.
template <class T, int M>
METASPARSE_INLINE void interleave(const Vec<T>* in, Vec<T>* out) {
  if constexpr (M == 1) {
    out[0] = in[0];
  } else if constexpr (M == 4) {
    Vec<T> pair[2] = {in[0], in[2]}, even[2], odd[2];
    interleave<T, 2>(pair, even);
    pair[0] = in[1], pair[1] = in[3];
    interleave<T, 2>(pair, odd);
    pair[0] = even[0], pair[1] = odd[0];
    interleave<T, 2>(pair, out);
    pair[0] = even[1], pair[1] = odd[1];
    interleave<T, 2>(pair, out + 2);
  } else {
    interleave_all<T, M>(in, out, std::make_index_sequence<M>());
  }
}

// Element j of tile l lies at p[l * M + j]: the same, from and to memory. Both may touch up to
// three values past the last tile, and load_tiles ignores what it finds there.
#if defined(__AVX2__) && !defined(__AVX512F__)

// Shuffles that cross the 128-bit halves of a register cost twice as much as others here. So the
// halves are loaded as they are wanted, tiles 0 .. 3 in the lower ones and 4 .. 7 in the upper, and
// four columns of eight tiles are two 4x4 transposes side by side.
METASPARSE_INLINE void transpose_halves(const Vec<float>* in, Vec<float>* out) {
  const __m256 low01 = _mm256_unpacklo_ps(in[0], in[1]), low23 = _mm256_unpacklo_ps(in[2], in[3]);
  const __m256 high01 = _mm256_unpackhi_ps(in[0], in[1]), high23 = _mm256_unpackhi_ps(in[2], in[3]);
  out[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  out[1] = _mm256_shuffle_ps(low01, low23, 0xee);
  out[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  out[3] = _mm256_shuffle_ps(high01, high23, 0xee);
}

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

template <class T, int M>
METASPARSE_INLINE void load_tiles(const T* p, Vec<T>* out) {
  if constexpr (sizeof(T) == 4 && M >= 3) {
    Vec<T> columns[4];
    load_four_columns<M>(p, columns);
    METASPARSE_UNROLL
    for (int j = 0; j < 4 && j < M; ++j) out[j] = columns[j];
    if constexpr (M > 4) {  // the last four, of which some are there already
      load_four_columns<M>(p + M - 4, columns);
      METASPARSE_UNROLL
      for (int j = 4; j < M; ++j) out[j] = columns[j - (M - 4)];
    }
  } else if constexpr (sizeof(T) == 4 && M == 2) {
    __m256 in[2];
    METASPARSE_UNROLL
    for (int k = 0; k < 2; ++k) {
      in[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4 * k)),
                                   _mm_loadu_ps(p + 4 * k + 8), 1);
    }
    out[0] = _mm256_shuffle_ps(in[0], in[1], 0x88);
    out[1] = _mm256_shuffle_ps(in[0], in[1], 0xdd);
  } else {
    Vec<T> in[M];
    METASPARSE_UNROLL
    for (int j = 0; j < M; ++j) in[j] = load(p + j * kLanes<T>);
    deinterleave<T, M>(in, out);
  }
}

template <class T, int M>
METASPARSE_INLINE void store_tiles(T* p, const Vec<T>* in) {
  if constexpr (sizeof(T) == 4 && M >= 3) {
    const Vec<T> first[4] = {in[0], in[1], in[2], M > 3 ? in[M > 3 ? 3 : 0] : Vec<T>{}};
    store_four_columns<M>(p, first);
    if constexpr (M > 4) store_four_columns<M>(p + M - 4, in + M - 4);
  } else {
    Vec<T> out[M];
    interleave<T, M>(in, out);
    METASPARSE_UNROLL
    for (int j = 0; j < M; ++j) store(p + j * kLanes<T>, out[j]);
  }
}

#else

template <class T, int M>
METASPARSE_INLINE void load_tiles(const T* p, Vec<T>* out) {
  Vec<T> in[M];
  METASPARSE_UNROLL
  for (int j = 0; j < M; ++j) in[j] = load(p + j * kLanes<T>);
  deinterleave<T, M>(in, out);
}

template <class T, int M>
METASPARSE_INLINE void store_tiles(T* p, const Vec<T>* in) {
  Vec<T> out[M];
  interleave<T, M>(in, out);
  METASPARSE_UNROLL
  for (int j = 0; j < M; ++j) store(p + j * kLanes<T>, out[j]);
}

#endif

// Transposes L vectors of L lanes: each level interleaves the two halves.
template <class T>
METASPARSE_INLINE void transpose(Vec<T>* v) {
  constexpr int L = kLanes<T>;
#if defined(__AVX2__) && !defined(__AVX512F__)
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
