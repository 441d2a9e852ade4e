#pragma once
// Winograd's minimal filtering F(2x2, 3x3) for the sparse convolution: a 2x2 tile of pixels from 16
// products per active kernel instead of 36,
//
//   y = A' [ (G g G') * (B' d B) ] A,   * elementwise, d the 4x4 inputs of the tile, g the 3x3
//   taps.
//
// The transform is linear, so kernels are summed, and skipped, before it is undone: a thread keeps
// the 16 sums of one tile for each of its destination channels, and undoes the transform once, in
// registers. Kernels are transformed as they are packed. Inputs are transformed by each warp for
// its own channels: 32 additions against 16 products per active kernel, where transformed inputs in
// shared memory would cost as many reads as the inputs themselves, and writes besides, of a memory
// whose bandwidth is what bounds the loop.
#include "conv_tiles.cuh"

namespace metasparse::cuda {

// G g G': rows and columns of 4 from rows and columns of 3.
struct WinogradTaps {
  static constexpr int kSize = 16;
  static constexpr int kRoom = 16;

  template <class F>
  static __device__ __forceinline__ void widen(F a, F b, F c, F* to, int stride) {
    const F outer = F(.5) * (a + c), inner = F(.5) * b;
    to[0] = a;
    to[stride] = outer + inner;
    to[2 * stride] = outer - inner;
    to[3 * stride] = c;
  }

  template <class F>
  static __device__ void put(const F (&taps)[kTaps], F* to) {
    F rows[4][3];
#pragma unroll
    for (int q = 0; q < 3; ++q) widen(taps[q], taps[3 + q], taps[6 + q], &rows[0][q], 3);
#pragma unroll
    for (int r = 0; r < 4; ++r) widen(rows[r][0], rows[r][1], rows[r][2], to + 4 * r, 1);
  }
};

// Blocks are small: the sums take so many registers that three of 128 threads fill a
// multiprocessor, and pictures of few tiles still make many blocks.
template <int kChannels, int kBlocks>
struct WinogradTile {
  using Form = WinogradTaps;
  static constexpr int kSlots = 32;
  static constexpr int kPerThread = kChannels;
  static constexpr int kResident = kBlocks;
  static constexpr int kCuts = 4;
  static constexpr int kStep = 2;
  static constexpr int kWindow = 4;
  static constexpr int kUnits = 1;
  static constexpr int kOutputs = 4;
  static constexpr int kSums = 16;
  static constexpr int kPatchRows = 4;
  static constexpr int kChunk = 4;

  // B' d.
  template <class F>
  static __device__ __forceinline__ void transform(F& a, F& b, F& c, F& d) {
    const F second = b + c, third = c - b;
    a -= c;
    d = b - d;
    b = second;
    c = third;
  }

  // By two columns at once: neighbouring lanes read neighbouring pairs. All patches begin at even
  // columns of planes of an even width.
  template <class F>
  static __device__ __forceinline__ void load(const F* window, int columns, F (&patch)[4][4]) {
    struct alignas(2 * sizeof(F)) Pair {
      F left, right;
    };
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const auto* const pairs = reinterpret_cast<const Pair*>(window + r * columns);
      const Pair first = pairs[0], second = pairs[1];
      patch[r][0] = first.left;
      patch[r][1] = first.right;
      patch[r][2] = second.left;
      patch[r][3] = second.right;
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) transform(patch[r][0], patch[r][1], patch[r][2], patch[r][3]);
#pragma unroll
    for (int q = 0; q < 4; ++q) transform(patch[0][q], patch[1][q], patch[2][q], patch[3][q]);
  }

  template <class F>
  static __device__ __forceinline__ void accumulate(const F (&kernel)[16], const F (&patch)[4][4],
                                                    F (&sums)[16]) {
#pragma unroll
    for (int k = 0; k < 16; ++k) sums[k] += kernel[k] * patch[k / 4][k % 4];
  }

  // A' m A.
  template <class F>
  static __device__ __forceinline__ void finish(const F (&sums)[16], F (&pixels)[4]) {
    F rows[2][4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      rows[0][q] = sums[q] + sums[4 + q] + sums[8 + q];
      rows[1][q] = sums[4 + q] - sums[8 + q] - sums[12 + q];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      pixels[2 * r] = rows[r][0] + rows[r][1] + rows[r][2];
      pixels[2 * r + 1] = rows[r][1] - rows[r][2] - rows[r][3];
    }
  }

  static __device__ __forceinline__ Pixel pixel(int output, Pixel unit, int) {
    return {2 * unit.row + output / 2, 2 * unit.column + output % 2};
  }

  static int64_t units(int pixels, int64_t) { return (pixels + 1) / 2; }
  static int64_t origin(int64_t padding, bool input_grad) {
    return input_grad ? 2 - padding : padding;
  }
};

}  // namespace metasparse::cuda
