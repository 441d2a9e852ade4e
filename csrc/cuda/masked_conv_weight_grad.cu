// The weight gradient, at the active kernels alone. A warp takes one input channel and eight output
// channels; its lanes walk down columns of the gradient image, a 3x3 window of the input sliding
// along in registers, and each gathers the 72 sums of its columns. The lanes' sums are added in a
// fixed tree. Where there are few kernels the columns are dealt to several warps ("slices"). What
// slices and the terms of a pair have, a last launch adds in order: no atomics, equal results every
// run.
#include <algorithm>

#include "launch.h"
#include "masked_conv.h"
#include "reduce.cuh"

namespace metasparse::cuda {
namespace {

constexpr int kTaps = 9;
constexpr int kOutputs = 8;  // output channels of a warp
constexpr int kWarps = 4;    // input channels of a block
constexpr int kAddThreads = 256;

// Blocks that a multiprocessor should hold at once; float64 needs the registers of two.
template <class F>
constexpr int kResident = sizeof(F) == 4 ? 4 : 2;

template <class F>
struct WeightGrad {
  WeightGradTerm<F> term;
  PerTask<F> mask;
  F* sums;  // (T, O, I, 3, 3), or (slices, T, O, I, 3, 3) where there are several
  int samples, in_channels, out_channels, height, width, out_height, out_width, padding;
  int tasks, slices;
};

// Enough warps for the largest devices, from the shape alone: results do not depend on the device.
int slices_of(const ConvShape& s) {
  constexpr int64_t kWanted = 2048, kLeastColumns = 64;
  const int64_t warps = s.tasks * s.in_channels * ceil_div(s.out_channels, kOutputs);
  if (warps == 0) return 1;
  const int64_t most = s.samples * s.out_width / kLeastColumns;
  return static_cast<int>(
      std::clamp(int64_t{ceil_div(kWanted, warps)}, int64_t{1}, std::max(most, int64_t{1})));
}

// Column `column` of the gradient image of `image`, for the outputs whose bits are set.
template <int kStride, class F>
__device__ __forceinline__ void add_column(const WeightGrad<F>& s, const F* x, const F* grad,
                                           int column, uint32_t active,
                                           F (&sums)[kOutputs][kTaps]) {
  const int64_t out_plane = int64_t{s.out_height} * s.out_width;
  const int first = kStride * column - s.padding;
  F window[3][3];
  const auto load = [&](int row, F(&line)[3]) {
    const bool inside = row >= 0 && row < s.height;
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
      const int at = first + kx;
      line[kx] = inside && at >= 0 && at < s.width ? x[int64_t{row} * s.width + at] : F{0};
    }
  };
  // The rows that the first step does not bring itself.
#pragma unroll
  for (int ky = 0; ky < 3 - kStride; ++ky) load(ky - s.padding, window[kStride + ky]);
  for (int row = 0; row < s.out_height; ++row) {
#pragma unroll
    for (int ky = 0; ky < 3; ++ky) {
      if (ky < 3 - kStride) {
#pragma unroll
        for (int kx = 0; kx < 3; ++kx) window[ky][kx] = window[ky + kStride][kx];
      } else {
        load(kStride * row + ky - s.padding, window[ky]);
      }
    }
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      if (!(active >> o & 1)) continue;
      const F g = grad[o * out_plane + int64_t{row} * s.out_width + column];
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) sums[o][tap] += g * window[tap / 3][tap % 3];
    }
  }
}

// Grid: input channels by four, output channels by eight, tasks times slices.
template <class F, int kStride>
__global__ void __launch_bounds__(kWarps* kWarpSize, kResident<F>)
    sample_weight_grad(WeightGrad<F> s) {
  const int lane = threadIdx.x % kWarpSize;
  const int i = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int o0 = static_cast<int>(blockIdx.y) * kOutputs;
  const int task = static_cast<int>(blockIdx.z) % s.tasks, slice = blockIdx.z / s.tasks;
  if (i >= s.in_channels) return;

  // Lane l knows the mask of output o0 + l.
  const F* const mask = s.mask.data == nullptr ? nullptr : s.mask.data + task * s.mask.task_stride;
  F scale = 0;
  if (lane < kOutputs && o0 + lane < s.out_channels) {
    scale = mask == nullptr ? F{1} : mask[int64_t{o0 + lane} * s.in_channels + i];
  }
  const uint32_t active = __ballot_sync(kAllLanes, scale != F{0});

  F sums[kOutputs][kTaps] = {};
  if (active != 0) {
    const int64_t plane = int64_t{s.height} * s.width;
    const int64_t out_plane = int64_t{s.out_height} * s.out_width;
    const F* const x = s.term.x.data + task * s.term.x.task_stride + i * plane;
    const F* const grad = s.term.grad.data + task * s.term.grad.task_stride + o0 * out_plane;
    const int64_t columns = int64_t{s.samples} * s.out_width;
    const int end = static_cast<int>(columns * (slice + 1) / s.slices);
    for (int c = static_cast<int>(columns * slice / s.slices) + lane; c < end; c += kWarpSize) {
      const int64_t image = c / s.out_width;
      add_column<kStride>(s, x + image * s.in_channels * plane,
                          grad + image * s.out_channels * out_plane, c % s.out_width, active, sums);
    }
  }

  const int64_t row = static_cast<int64_t>(blockIdx.z) * s.out_channels + o0;
  F* const out = s.sums + (row * s.in_channels + i) * kTaps;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    if (o0 + o >= s.out_channels) break;
    F own = 0;
    if (active >> o & 1) {
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        const F sum = warp_sum(sums[o][tap]);
        if (lane == tap) own = sum;
      }
      own *= __shfl_sync(kAllLanes, scale, o);
    }
    if (lane < kTaps) out[int64_t{o} * s.in_channels * kTaps + lane] = own;
  }
}

// Adds the slices in order.
template <class F>
__global__ void __launch_bounds__(kAddThreads)
    add_slices(const F* sums, int slices, int64_t size, F* total) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x;
  if (e >= size) return;
  F sum = sums[e];
  for (int slice = 1; slice < slices; ++slice) sum += sums[slice * size + e];
  total[e] = sum;
}

}  // namespace

bool weight_grad_fits_grid(const ConvShape& s) {
  return s.tasks * slices_of(s) <= ConvShape::kGrid;
}

template <class F>
int64_t masked_conv_weight_grad_workspace(const ConvShape& s, int terms) {
  const int parts = terms * slices_of(s);
  if (parts == 1) return 0;
  return parts * s.tasks * s.out_channels * s.in_channels * kTaps * static_cast<int64_t>(sizeof(F));
}

template <class F>
cudaError_t masked_conv_weight_grad(const ConvShape& s, const WeightGradSum<F>& sum,
                                    PerTask<F> mask, F* grad_weight, void* workspace,
                                    cudaStream_t stream) {
  const int64_t size = s.tasks * s.out_channels * s.in_channels * kTaps;
  if (size == 0) return cudaSuccess;
  const int slices = slices_of(s), parts = sum.count * slices;
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  F* const sums = parts == 1 ? grad_weight : static_cast<F*>(workspace);
  const Launch shape = {{ceil_div(s.in_channels, kWarps), ceil_div(s.out_channels, kOutputs),
                         static_cast<unsigned>(s.tasks * slices)},
                        {kWarps * kWarpSize, 1, 1},
                        0,
                        1};
  for (int term = 0; term < sum.count; ++term) {
    const WeightGrad<F> call = {sum.terms[term],
                                mask,
                                sums + term * slices * size,
                                narrow(s.samples),
                                narrow(s.in_channels),
                                narrow(s.out_channels),
                                narrow(s.height),
                                narrow(s.width),
                                narrow(s.out_height),
                                narrow(s.out_width),
                                narrow(s.padding),
                                narrow(s.tasks),
                                slices};
    const auto error = s.stride == 1 ? launch(sample_weight_grad<F, 1>, shape, stream, call)
                                     : launch(sample_weight_grad<F, 2>, shape, stream, call);
    if (error != cudaSuccess) return error;
  }
  if (parts == 1) return cudaSuccess;
  return launch(add_slices<F>, {{ceil_div(size, kAddThreads), 1, 1}, {kAddThreads, 1, 1}, 0, 1},
                stream, static_cast<const F*>(sums), parts, size, grad_weight);
}

#define METASPARSE_INSTANTIATE(F)                                                         \
  template int64_t masked_conv_weight_grad_workspace<F>(const ConvShape&, int);           \
  template cudaError_t masked_conv_weight_grad(const ConvShape&, const WeightGradSum<F>&, \
                                               PerTask<F>, F*, void*, cudaStream_t);
METASPARSE_INSTANTIATE(float)
METASPARSE_INSTANTIATE(double)
#undef METASPARSE_INSTANTIATE

}  // namespace metasparse::cuda
