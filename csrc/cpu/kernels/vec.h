// The vectors that the kernels are written in.
//
// Vec<T> is as many T as one register of the instruction set holds, a GCC/Clang vector type: +, -,
// * and a * b + c (one rounding where the CPU has it) work on it directly. This file adds what the
// operators lack: unaligned and masked access, and shuffles by a pattern.
//
// It is included only by files of this folder. Everything lives in the namespace of the instruction
// set it is compiled for, so that no linker can put an AVX-512 body in place of a baseline one; for
// the same reason those files use no function of the standard library.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
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

// AVX2 has registers of two halves: shuffles that cross from one to the other cost twice as much.
#if defined(__AVX2__) && !defined(__AVX512F__)
#define METASPARSE_HALVES 1
#endif

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

// Past the caches, straight to memory; p is aligned to the vector. finish_streams makes such stores
// visible to others in order with all that follow.
template <class T>
METASPARSE_INLINE void store_streamed(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#else
  store(p, v);
#endif
}

template <class T>
METASPARSE_INLINE bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0;
}

METASPARSE_INLINE void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
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

// A Lanes set in the form that the instruction set takes; worth keeping where it is used often.
#if defined(__AVX512F__)

template <class T>
using LaneMask = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;

template <class T>
METASPARSE_INLINE LaneMask<T> lane_mask(Lanes lanes) {
  return static_cast<LaneMask<T>>(lanes);
}
METASPARSE_INLINE Vec<float> load_masked(LaneMask<float> mask, const float* p) {
  return _mm512_maskz_loadu_ps(mask, p);
}
METASPARSE_INLINE Vec<double> load_masked(LaneMask<double> mask, const double* p) {
  return _mm512_maskz_loadu_pd(mask, p);
}
METASPARSE_INLINE Vec<float> blend(LaneMask<float> mask, Vec<float> yes, Vec<float> no) {
  return _mm512_mask_blend_ps(mask, no, yes);
}
METASPARSE_INLINE Vec<double> blend(LaneMask<double> mask, Vec<double> yes, Vec<double> no) {
  return _mm512_mask_blend_pd(mask, no, yes);
}
METASPARSE_INLINE void store_some(Lanes lanes, float* p, Vec<float> v) {
  _mm512_mask_storeu_ps(p, lane_mask<float>(lanes), v);
}
METASPARSE_INLINE void store_some(Lanes lanes, double* p, Vec<double> v) {
  _mm512_mask_storeu_pd(p, lane_mask<double>(lanes), v);
}

#elif defined(__AVX2__)

template <class T>
using LaneMask = __m256i;

template <class T>
METASPARSE_INLINE LaneMask<T> lane_mask(Lanes lanes) {
  if constexpr (sizeof(T) == 4) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(lanes));
    return _mm256_cmpeq_epi32(_mm256_and_si256(all, bit), bit);
  } else {
    const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(lanes), bit), bit);
  }
}
METASPARSE_INLINE Vec<float> load_masked(__m256i mask, const float* p) {
  return _mm256_maskload_ps(p, mask);
}
METASPARSE_INLINE Vec<double> load_masked(__m256i mask, const double* p) {
  return _mm256_maskload_pd(p, mask);
}
METASPARSE_INLINE Vec<float> blend(__m256i mask, Vec<float> yes, Vec<float> no) {
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(mask));
}
METASPARSE_INLINE Vec<double> blend(__m256i mask, Vec<double> yes, Vec<double> no) {
  return _mm256_blendv_pd(no, yes, _mm256_castsi256_pd(mask));
}
// AMD's cores take a dozen cycles for a masked store: it is the last resort.
METASPARSE_INLINE void store_some(Lanes lanes, float* p, Vec<float> v) {
  if (lanes == kAllLanes<float>) return store_unaligned(p, v);
  if ((lanes & (lanes + 1)) != 0) return _mm256_maskstore_ps(p, lane_mask<float>(lanes), v);
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
  _mm256_maskstore_pd(p, lane_mask<double>(lanes), v);
}

#else

template <class T>
using LaneMask = Lanes;

template <class T>
METASPARSE_INLINE LaneMask<T> lane_mask(Lanes lanes) {
  return lanes;
}
template <class T>
METASPARSE_INLINE Vec<T> load_masked(Lanes lanes, const T* p) {
  if (lanes == kAllLanes<T>) return load_unaligned(p);
  Vec<T> v{};
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<T>; ++l) {
    if (lanes >> l & 1) v[l] = p[l];
  }
  return v;
}
METASPARSE_INLINE Vec<float> blend(Lanes lanes, Vec<float> yes, Vec<float> no) {
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<float>; ++l) no[l] = lanes >> l & 1 ? yes[l] : no[l];
  return no;
}
METASPARSE_INLINE Vec<double> blend(Lanes lanes, Vec<double> yes, Vec<double> no) {
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<double>; ++l) no[l] = lanes >> l & 1 ? yes[l] : no[l];
  return no;
}
template <class T>
METASPARSE_INLINE void store_some(Lanes lanes, T* p, Vec<T> v) {
  if (lanes == kAllLanes<T>) return store_unaligned(p, v);
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<T>; ++l) {
    if (lanes >> l & 1) p[l] = v[l];
  }
}

#endif

template <class T>
METASPARSE_INLINE Vec<T> load_some(Lanes lanes, const T* p) {
  return load_masked(lane_mask<T>(lanes), p);
}

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

}  // namespace metasparse::cpu::METASPARSE_ISA
