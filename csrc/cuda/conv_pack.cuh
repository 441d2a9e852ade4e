#pragma once
// Kernels packed for the sparse convolutions: per block of 32 destination channels, the list of the
// source channels that reach any of them, a bit per destination, and the products w * m in the
// order of that list. Made on the device in front of every convolution, so that
// a mask may change in the launch before; the convolution then copies its kernels 16 bytes at a
// time and branches on bits.
#include "device.cuh"
#include "launch.h"
#include "masked_conv.h"
#include "reduce.cuh"

namespace metasparse::cuda {

constexpr int kDestinations = 32;  // channels of a block: the bits of a word
constexpr int kTaps = 9;
constexpr int kKernelRoom = 12;  // numbers from one packed kernel to the next: whole 16 bytes

struct alignas(8) Entry {
  int source;       // channel
  uint32_t active;  // bit d: kernel (source, 32 block + d)
};

// Where the lists of one call lie in the workspace.
template <class F>
struct PackedKernels {
  int* counts;     // (tasks, blocks): active source channels
  Entry* entries;  // (tasks, blocks, sources)
  F* kernels;      // (tasks, blocks, sources, 32, kKernelRoom): w * m where active, else unwritten
  int tasks, blocks, sources;

  __host__ __device__ int64_t list(int64_t task, int64_t block) const {
    return (tasks == 1 ? 0 : task) * blocks + block;
  }
};

// tasks is 1 where all tasks share weights and mask.
template <class F>
PackedKernels<F> packed_kernels(int64_t tasks, int64_t sources, int64_t destinations,
                                void* workspace) {
  const int64_t blocks = ceil_div(destinations, kDestinations), lists = tasks * blocks;
  auto* const kernels = static_cast<F*>(workspace);
  auto* const entries =
      reinterpret_cast<Entry*>(kernels + lists * sources * kDestinations * kKernelRoom);
  auto* const counts = reinterpret_cast<int*>(entries + lists * sources);
  return {counts,
          entries,
          kernels,
          static_cast<int>(tasks),
          static_cast<int>(blocks),
          static_cast<int>(sources)};
}

template <class F>
int64_t packed_bytes(int64_t tasks, int64_t sources, int64_t destinations) {
  const auto end = packed_kernels<F>(tasks, sources, destinations, nullptr);
  const int64_t lists = tasks * end.blocks;
  return lists * (sources * (kDestinations * kKernelRoom * static_cast<int64_t>(sizeof(F)) +
                             static_cast<int64_t>(sizeof(Entry))) +
                  static_cast<int64_t>(sizeof(int)));
}

// The kernels as they lie in the network, and from which end the convolution reads them.
template <class F>
struct KernelsToPack {
  PerTask<F> weight, mask;
  int out_channels, in_channels;
  bool transposed;  // sources are output channels, destinations input channels
  bool rotated;     // taps in reverse order

  __device__ int destinations() const { return transposed ? in_channels : out_channels; }
  __device__ int64_t kernel(int source, int destination) const {
    return transposed ? int64_t{source} * in_channels + destination
                      : int64_t{destination} * in_channels + source;
  }
};

constexpr int kPackThreads = 256;

template <class F>
__device__ uint32_t active_word(const KernelsToPack<F>& from, const F* mask, int source,
                                int first) {
  uint32_t word = 0;
  for (int d = 0; d < kDestinations && first + d < from.destinations(); ++d) {
    const bool active = mask == nullptr || mask[from.kernel(source, first + d)] != F{0};
    word |= static_cast<uint32_t>(active) << d;
  }
  return word;
}

// Grid: blocks of destinations, tasks.
template <class F>
__global__ void __launch_bounds__(kPackThreads) pack(KernelsToPack<F> from, PackedKernels<F> to) {
  auto* const warps = reinterpret_cast<int*>(dynamic_shared());
  const int task = blockIdx.y, first = blockIdx.x * kDestinations;
  const F* const weight = from.weight.data + task * from.weight.task_stride;
  const F* const mask =
      from.mask.data == nullptr ? nullptr : from.mask.data + task * from.mask.task_stride;
  const int64_t list = to.list(task, blockIdx.x);
  Entry* const entries = to.entries + list * to.sources;
  F* const kernels = to.kernels + list * to.sources * kDestinations * kKernelRoom;

  int count = 0, turn = 0;
  for (int start = 0; start < to.sources; start += kPackThreads, turn ^= 1) {
    const int source = start + static_cast<int>(threadIdx.x);
    const uint32_t word =
        source < to.sources ? active_word(from, mask, source, first) : uint32_t{0};
    const Scan place =
        block_scan<kPackThreads>(word != 0, warps + turn * (kPackThreads / kWarpSize));
    if (word != 0) entries[count + place.before] = {source, word};
    count += place.total;
  }
  if (threadIdx.x == 0) to.counts[list] = count;
  __syncthreads();

  for (int e = threadIdx.x; e < count * kDestinations; e += kPackThreads) {
    const Entry entry = entries[e / kDestinations];
    const int d = e % kDestinations;
    if (!(entry.active >> d & 1)) continue;
    const int64_t kernel = from.kernel(entry.source, first + d);
    const F scale = mask == nullptr ? F{1} : mask[kernel];
    F* const packed = kernels + int64_t{e} * kKernelRoom;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      packed[tap] = scale * weight[kernel * kTaps + (from.rotated ? kTaps - 1 - tap : tap)];
    }
  }
}

template <class F>
cudaError_t pack_kernels(const KernelsToPack<F>& from, const PackedKernels<F>& to,
                         cudaStream_t stream) {
  const Launch shape = {{static_cast<unsigned>(to.blocks), static_cast<unsigned>(to.tasks), 1},
                        {kPackThreads, 1, 1},
                        2 * (kPackThreads / kWarpSize) * sizeof(int),
                        1};
  return launch(pack<F>, shape, stream, from, to);
}

}  // namespace metasparse::cuda
