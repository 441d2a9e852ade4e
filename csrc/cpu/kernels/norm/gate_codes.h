// Gate codes between memory, one byte each, and registers, where a code is as wide as the value it
// belongs to and comparisons with it give a choice of lanes. Included only by files of this folder;
// vec.h says why everything here is inlined.
#pragma once

#include "../../../norm_act_pool_gate.h"
#include "../vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

template <class T>
struct CodeOf;
template <>
struct CodeOf<float> {
  using type = int32_t;
};
template <>
struct CodeOf<double> {
  using type = int64_t;
};

template <class T>
using CodeVec = Vec<typename CodeOf<T>::type>;

// Codes of a whole vector of values, and of the first `count` values of one.
template <class T>
CodeVec<T> load_codes(const uint8_t* p);
template <class T>
CodeVec<T> load_codes(const uint8_t* p, int count);
template <class T>
void store_codes(uint8_t* p, CodeVec<T> codes);
template <class T>
void store_codes(uint8_t* p, CodeVec<T> codes, int count);

#if defined(__AVX512F__)

template <>
METASPARSE_INLINE CodeVec<float> load_codes<float>(const uint8_t* p, int count) {
  const auto lanes = static_cast<__mmask16>(lanes_between(0, count, 16));
  return (CodeVec<float>)_mm512_maskz_cvtepu8_epi32(lanes, _mm_maskz_loadu_epi8(lanes, p));
}
template <>
METASPARSE_INLINE CodeVec<double> load_codes<double>(const uint8_t* p, int count) {
  const auto lanes = static_cast<__mmask8>(lanes_between(0, count, 8));
  return (CodeVec<double>)_mm512_maskz_cvtepu8_epi64(lanes, _mm_maskz_loadu_epi8(lanes, p));
}
template <>
METASPARSE_INLINE void store_codes<float>(uint8_t* p, CodeVec<float> codes, int count) {
  const auto lanes = static_cast<__mmask16>(lanes_between(0, count, 16));
  _mm512_mask_cvtepi32_storeu_epi8(p, lanes, (__m512i)codes);
}
template <>
METASPARSE_INLINE void store_codes<double>(uint8_t* p, CodeVec<double> codes, int count) {
  const auto lanes = static_cast<__mmask8>(lanes_between(0, count, 8));
  _mm512_mask_cvtepi64_storeu_epi8(p, lanes, (__m512i)codes);
}
template <class T>
METASPARSE_INLINE CodeVec<T> load_codes(const uint8_t* p) {
  return load_codes<T>(p, kLanes<T>);
}
template <class T>
METASPARSE_INLINE void store_codes(uint8_t* p, CodeVec<T> codes) {
  store_codes<T>(p, codes, kLanes<T>);
}

#else

#if defined(__AVX2__)

template <>
METASPARSE_INLINE CodeVec<float> load_codes<float>(const uint8_t* p) {
  return (CodeVec<float>)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
template <>
METASPARSE_INLINE CodeVec<double> load_codes<double>(const uint8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof(four));
  return (CodeVec<double>)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
}
template <>
METASPARSE_INLINE void store_codes<float>(uint8_t* p, CodeVec<float> codes) {
  const __m256i all = (__m256i)codes;
  const __m128i pairs =
      _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(pairs, pairs));
}
template <>
METASPARSE_INLINE void store_codes<double>(uint8_t* p, CodeVec<double> codes) {
  for (int l = 0; l < kLanes<double>; ++l) p[l] = static_cast<uint8_t>(codes[l]);
}

#else

template <class T>
METASPARSE_INLINE CodeVec<T> load_codes(const uint8_t* p) {
  CodeVec<T> codes{};
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<T>; ++l) codes[l] = p[l];
  return codes;
}
template <class T>
METASPARSE_INLINE void store_codes(uint8_t* p, CodeVec<T> codes) {
  METASPARSE_UNROLL
  for (int l = 0; l < kLanes<T>; ++l) p[l] = static_cast<uint8_t>(codes[l]);
}

#endif

template <class T>
METASPARSE_INLINE CodeVec<T> load_codes(const uint8_t* p, int count) {
  static_assert(kLanes<T> <= 8 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  uint64_t bytes = 0;  // one store: a wide load waits for several narrow ones
  for (int l = count; l-- > 0;) bytes = bytes << 8 | p[l];
  return load_codes<T>(reinterpret_cast<const uint8_t*>(&bytes));
}
template <class T>
METASPARSE_INLINE void store_codes(uint8_t* p, CodeVec<T> codes, int count) {
  uint8_t bytes[kLanes<T>];
  store_codes<T>(bytes, codes);
  for (int l = 0; l < count; ++l) p[l] = bytes[l];
}

#endif

// ReLU, which passes NaN as PyTorch's does; the codes of what it closes.
template <class T>
METASPARSE_INLINE void close_negative(Vec<T>& value, CodeVec<T>& code) {
  const CodeVec<T> closed = value <= Vec<T>{};
  value = closed ? Vec<T>{} : value;
  code = closed ? CodeVec<T>{} + kClosed : code;
}

}  // namespace metasparse::cpu::METASPARSE_ISA
