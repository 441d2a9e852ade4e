// Kernels with and without the faults that the log of accesses is for. Each is a launch of 2 blocks
// of 64 threads on `data`, zeros, and gives what was found, as text.
#include "../../csrc/cuda/device.cuh"
#include "../../csrc/cuda/launch.h"
#include "races.h"

namespace metasparse::cuda {
namespace {

enum Fault {
  kNone,
  kNoBarrier,
  kWarpBarrier,
  kTwoBlocks,
  kReadBeforeWrite,
  kUnaligned,
  kCopyUnwaited
};

struct alignas(16) Wide {
  float values[4];
};

__global__ void exchange(float* data, int fault) {
  auto* const shared = reinterpret_cast<float*>(dynamic_shared());
  const unsigned thread = threadIdx.x, other = 63 - thread;
  if (fault == kCopyUnwaited) {
    copy_async<4>(shared + thread, data + thread, true);
    copy_async_commit();
    __syncthreads();  // before the copy is waited for
    data[64 + 64 * blockIdx.x + thread] = shared[other];
    copy_async_wait<0>();
    return;
  }
  shared[thread] = static_cast<float>(thread);
  if (fault == kWarpBarrier) __ballot_sync(~0u, true);
  if (fault != kNoBarrier && fault != kWarpBarrier) __syncthreads();
  const float got = shared[other];
  if (fault != kReadBeforeWrite) __syncthreads();
  shared[thread] = got + 1;
  if (fault == kUnaligned) {
    reinterpret_cast<Wide*>(data + 1 + 64 * blockIdx.x)->values[0] = got;
    return;
  }
  const unsigned block = fault == kTwoBlocks ? 0 : blockIdx.x;
  data[64 * block + thread] = got;
}

}  // namespace

extern "C" int check_races(float* data, int fault, char* text, int room) {
  const Launch shape = {{2}, {64}, 64 * sizeof(float), 1};
  const auto error = launch(exchange, shape, nullptr, data, fault);
  emulation::take_findings(text, static_cast<size_t>(room));
  return error;
}

}  // namespace metasparse::cuda
