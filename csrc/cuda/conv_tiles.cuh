#pragma once
// What one thread of the direct convolution computes. It holds a few "units" one below the other,
// of eight destination channels: a unit is a pixel of the forward pass, or a 2x2 quad of pixels of
// the input gradient at stride 2. Units read a patch of the source plane:
//   unit row u reads source rows kStep * u - origin, ... (kWindow of them); columns alike.
#include "conv_pack.cuh"

namespace metasparse::cuda {

struct Pixel {
  int row, column;
};

// What the tiles of the direct convolution have in common.
struct DirectTile {
  static constexpr int kSlots = 128;    // threads of a block for the same channels
  static constexpr int kPerThread = 8;  // destination channels
};

// The forward pass, and the input gradient at stride 1: nine taps give one pixel.
template <int kStride, int kUnitRows>
struct PixelTile : DirectTile {
  static constexpr int kStep = kStride;
  static constexpr int kWindow = 3;
  static constexpr int kUnits = kUnitRows;
  static constexpr int kOutputs = kUnitRows;  // per destination channel
  static constexpr int kPatchRows = kStep * (kUnitRows - 1) + kWindow;
  static constexpr int kChunk = kStride == 1 ? 8 : 4;  // source channels in shared memory at once

  template <class F>
  static __device__ __forceinline__ void accumulate(const F (&taps)[9],
                                                    const F (&patch)[kPatchRows][kWindow],
                                                    F (&sums)[kOutputs]) {
#pragma unroll
    for (int ky = 0; ky < 3; ++ky) {
#pragma unroll
      for (int kx = 0; kx < 3; ++kx) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) sums[u] += taps[3 * ky + kx] * patch[kStep * u + ky][kx];
      }
    }
  }

  static __device__ __forceinline__ Pixel pixel(int output, Pixel unit, int) {
    return {unit.row + output, unit.column};
  }

  static int64_t units(int pixels, int64_t) { return pixels; }
  static int64_t origin(int64_t padding, bool input_grad) {
    return input_grad ? 2 - padding : padding;
  }
};

// The input gradient at stride 2. Quad (u, v) covers pixels y = 2u + a - padding, x = 2v + b -
// padding with a, b in {0, 1}. A tap of even row meets the pixels of a = 0: tap 0 brings source row
// u, tap 2 row u - 1; tap 1 brings row u to a = 1. Each of the nine taps serves one of the four
// pixels: 2.25 products a pixel instead of nine, three quarters of them with zeros.
template <int kUnitRows>
struct QuadTile : DirectTile {
  static constexpr int kStep = 1;
  static constexpr int kWindow = 2;
  static constexpr int kUnits = kUnitRows;
  static constexpr int kOutputs = 4 * kUnitRows;
  static constexpr int kPatchRows = kUnitRows + 1;
  static constexpr int kChunk = 8;

  template <class F>
  static __device__ __forceinline__ void accumulate(const F (&taps)[9],
                                                    const F (&patch)[kPatchRows][kWindow],
                                                    F (&sums)[kOutputs]) {
#pragma unroll
    for (int ky = 0; ky < 3; ++ky) {
#pragma unroll
      for (int kx = 0; kx < 3; ++kx) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          sums[4 * u + 2 * (ky & 1) + (kx & 1)] +=
              taps[3 * ky + kx] * patch[u + (ky == 2 ? 0 : 1)][kx == 2 ? 0 : 1];
        }
      }
    }
  }

  static __device__ __forceinline__ Pixel pixel(int output, Pixel unit, int padding) {
    return {2 * (unit.row + output / 4) + (output >> 1 & 1) - padding,
            2 * unit.column + (output & 1) - padding};
  }

  static int64_t units(int pixels, int64_t padding) { return (pixels - 1 + padding) / 2 + 1; }
  static int64_t origin(int64_t, bool) { return 1; }
};

}  // namespace metasparse::cuda
