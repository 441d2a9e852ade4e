// The kernel tables of the instruction set in use.
#pragma once

#include "isa.h"
#include "kernels/conv_tables.h"

namespace metasparse::cpu {

template <class T>
const ProductKernels<T>& active_product_kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return avx512::product_kernels<T>();
    case Isa::avx2:
      return avx2::product_kernels<T>();
    default:
      break;
  }
#endif
  return baseline::product_kernels<T>();
}

template <class T>
const DirectKernels<T>& active_direct_kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return avx512::direct_kernels<T>();
    case Isa::avx2:
      return avx2::direct_kernels<T>();
    default:
      break;
  }
#endif
  return baseline::direct_kernels<T>();
}

template <class T>
const WinogradKernels<T>& active_winograd_kernels(int tile) {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return avx512::winograd_kernels<T>(tile);
    case Isa::avx2:
      return avx2::winograd_kernels<T>(tile);
    default:
      break;
  }
#endif
  return baseline::winograd_kernels<T>(tile);
}

template <class T>
const PolyphaseKernels<T>& active_polyphase_kernels(int tile) {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return avx512::polyphase_kernels<T>(tile);
    case Isa::avx2:
      return avx2::polyphase_kernels<T>(tile);
    default:
      break;
  }
#endif
  return baseline::polyphase_kernels<T>(tile);
}

}  // namespace metasparse::cpu
