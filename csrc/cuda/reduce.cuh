#pragma once
// Sums, ranks and scans over the threads of a block, in an order that never changes.
#include <cuda_runtime.h>

namespace metasparse::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = ~0u;

// The sum over a warp, in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int flip = kWarpSize / 2; flip > 0; flip /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, flip);
  }
  return value;
}

// Sums over a block, in every thread. Has two sets of slots, used in turn: who has left the barrier
// of one sum may write the next one's.
template <int kThreads>
class BlockSum {
 public:
  struct Slots {
    double values[2][kThreads / kWarpSize];
  };

  __device__ explicit BlockSum(Slots& slots) : slots_(slots) {}

  // Is a barrier too: what was written before the call is seen after it.
  __device__ double operator()(double value) {
    double* const warps = slots_.values[turn_];
    turn_ ^= 1;
    value = warp_sum(value);
    if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < kThreads / kWarpSize; ++w) total += warps[w];
    return total;
  }

 private:
  Slots& slots_;
  int turn_ = 0;
};

// Inclusive sums over the lanes of a warp.
__device__ __forceinline__ int warp_scan(int value) {
  const int lane = threadIdx.x % kWarpSize;
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

struct Scan {
  int before, total;  // the sum over the threads before this one, and over all
};

// The place of each thread's value in the block's sum. `warps` holds a number per warp; the caller
// puts a barrier between two uses.
template <int kThreads>
__device__ __forceinline__ Scan block_scan(int value, int* warps) {
  const int warp = threadIdx.x / kWarpSize;
  const int inclusive = warp_scan(value);
  if (threadIdx.x % kWarpSize == kWarpSize - 1) warps[warp] = inclusive;
  __syncthreads();
  Scan scan = {inclusive - value, 0};
  for (int w = 0; w < kThreads / kWarpSize; ++w) {
    if (w < warp) scan.before += warps[w];
    scan.total += warps[w];
  }
  return scan;
}

}  // namespace metasparse::cuda
