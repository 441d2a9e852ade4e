// 3x3 kernels between memory, where the nine taps of a kernel are neighbours, and registers, where
// one vector holds the same tap of as many kernels as it has lanes.
#pragma once

#include "squares.h"
#include "vec.h"

namespace metasparse::cpu::METASPARSE_ISA {

inline constexpr int kTaps = 9;

// A kernel is cut into pieces of a register, which are transposed, and perhaps one tap more. Where
// a register is longer than a kernel, the only piece is shorter than it.
template <class T>
inline constexpr int kWholePieces = kTaps / kLanes<T>;
template <class T>
inline constexpr bool kShortPiece = kWholePieces<T> == 0;

static_assert(kShortPiece<float> || kTaps % kLanes<float> == 1);
static_assert(kShortPiece<double> || kTaps % kLanes<double> == 1);

// taps[k] = tap k of every kernel; kernel[l] points to the one of lane l.
template <class T>
METASPARSE_INLINE void load_kernels(const T* const* kernel, Vec<T>* taps) {
  constexpr int L = kLanes<T>;
  Vec<T> piece[L];
  if constexpr (kShortPiece<T>) {
    constexpr Lanes kKernel = (Lanes{1} << kTaps) - 1;
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) piece[l] = load_some(kKernel, kernel[l]);
    transpose<T>(piece);
    METASPARSE_UNROLL
    for (int k = 0; k < kTaps; ++k) taps[k] = piece[k];
  } else {
    METASPARSE_UNROLL
    for (int p = 0; p < kWholePieces<T>; ++p) {
      METASPARSE_UNROLL
      for (int l = 0; l < L; ++l) piece[l] = load_unaligned(kernel[l] + p * L);
      transpose<T>(piece);
      METASPARSE_UNROLL
      for (int k = 0; k < L; ++k) taps[p * L + k] = piece[k];
    }
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) taps[kTaps - 1][l] = kernel[l][kTaps - 1];
  }
}

// The inverse, for the first `count` lanes; nothing beside a kernel is touched.
template <class T>
METASPARSE_INLINE void store_kernels(T* const* kernel, int count, const Vec<T>* taps) {
  constexpr int L = kLanes<T>;
  Vec<T> piece[L];
  if constexpr (kShortPiece<T>) {
    constexpr Lanes kKernel = (Lanes{1} << kTaps) - 1;
    METASPARSE_UNROLL
    for (int k = 0; k < L; ++k) piece[k] = k < kTaps ? taps[k < kTaps ? k : 0] : Vec<T>{};
    transpose<T>(piece);
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) {
      if (l < count) store_some(kKernel, kernel[l], piece[l]);
    }
  } else {
    METASPARSE_UNROLL
    for (int p = 0; p < kWholePieces<T>; ++p) {
      METASPARSE_UNROLL
      for (int k = 0; k < L; ++k) piece[k] = taps[p * L + k];
      transpose<T>(piece);
      METASPARSE_UNROLL
      for (int l = 0; l < L; ++l) {
        if (l < count) store_unaligned(kernel[l] + p * L, piece[l]);
      }
    }
    METASPARSE_UNROLL
    for (int l = 0; l < L; ++l) {
      if (l < count) kernel[l][kTaps - 1] = taps[kTaps - 1][l];
    }
  }
}

}  // namespace metasparse::cpu::METASPARSE_ISA
