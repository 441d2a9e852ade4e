// The kernel tables of an instruction set, and the set for a task of the convolution.
#pragma once

#include <cstdint>

#include "conv_scheme.h"
#include "isa.h"
#include "kernels/conv_tables.h"

namespace metasparse::cpu {

template <class T>
const ProductKernels<T>& product_kernels_of(Isa isa) {
  return copy_for(isa, baseline::product_kernels<T>, avx2::product_kernels<T>,
                  avx512::product_kernels<T>)();
}

template <class T>
const DenseKernels<T>& dense_kernels_of(Isa isa) {
  return copy_for(isa, baseline::dense_kernels<T>, avx2::dense_kernels<T>,
                  avx512::dense_kernels<T>)();
}

template <class T>
const DirectKernels<T>& direct_kernels_of(Isa isa) {
  return copy_for(isa, baseline::direct_kernels<T>, avx2::direct_kernels<T>,
                  avx512::direct_kernels<T>)();
}

template <class T>
const NarrowKernels<T>& narrow_kernels_of(Isa isa) {
  return copy_for(isa, baseline::narrow_kernels<T>, avx2::narrow_kernels<T>,
                  avx512::narrow_kernels<T>)();
}

template <class T>
const WinogradKernels<T>& winograd_kernels_of(Isa isa, int tile) {
  return copy_for(isa, baseline::winograd_kernels<T>, avx2::winograd_kernels<T>,
                  avx512::winograd_kernels<T>)(tile);
}

template <class T>
const PolyphaseKernels<T>& polyphase_kernels_of(Isa isa, int tile) {
  return copy_for(isa, baseline::polyphase_kernels<T>, avx2::polyphase_kernels<T>,
                  avx512::polyphase_kernels<T>)(tile);
}

// The set for a task whose images are cut into tiles of so many outputs. Where the tiles fill at
// most two of AVX-512's registers, AVX2's, half as long, leave fewer lanes empty and transpose
// faster: 1.03 to 1.4 times on Zen 4, 64 channels, 5 to 32 tiles. A set that the environment names
// is kept.
template <class T>
Isa isa_for_tiles(int64_t images, int64_t height, int64_t width, int tile) {
  const int64_t tiles = images * divide_up(height, tile) * divide_up(width, tile);
  const Isa isa = active_isa();
  const bool few = tiles <= 2 * product_kernels_of<T>(isa).lanes;
  return isa == Isa::avx512 && few && !isa_is_named() ? Isa::avx2 : isa;
}

}  // namespace metasparse::cpu
