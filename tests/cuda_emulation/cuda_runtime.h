#pragma once
// The part of CUDA that csrc/cuda uses, on a CPU: with this folder first on the include path, a
// host compiler takes the .cu files as they are, launchers included.
//
// Every CUDA thread is a fiber. A launch runs its blocks one after the other (the blocks of a
// cluster together), and a fiber runs until it meets a barrier: the most unfair schedule there can
// be, in an order shuffled anew after every barrier, so a missing barrier shows as a wrong result.
// Blocks come in a shuffled order, too. Further aids:
//   - shared memory starts as NaN and ends at an inaccessible page;
//   - an asynchronous copy takes place when it is waited for, not earlier;
//   - a barrier that not all threads reach fails the launch, with a sentence on stderr;
//   - in an instrumented build, a log of accesses that no barrier orders (races.h).
#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

// ---- types -------------------------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMaxSharedMemoryPerBlockOptin };
struct cudaFuncAttributes {
  int ptxVersion;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// ---- the host's side ---------------------------------------------------------------------------

namespace metasparse::emulation {

// Runs `body` once per thread.
cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& body);

// A property of the emulated device, and what the kernels were compiled for. Environment variables
// say them; without, all is as on 9.0.
int device_attribute(cudaDeviceAttr attribute);
int ptx_version();

// The last error that a call returned; asking for it forgets it.
cudaError_t failed(cudaError_t error);
cudaError_t last_error();

// ---- the device's side: what the calling fiber asks of the scheduler ---------------------------

void block_barrier();
void cluster_barrier();
unsigned cluster_rank();
unsigned char* shared_memory(unsigned rank);

// The value that each lane of the warp passed, for lanes that exist.
const uint64_t* warp_exchange(uint64_t value);
unsigned warp_lanes();
unsigned lane();

void log_atomic(const void* address, size_t bytes);
void copy_later(void* to, const void* from, size_t bytes);
void commit_copies();
void finish_copies(size_t groups_left);

template <class T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace metasparse::emulation

inline cudaError_t cudaGetLastError() { return metasparse::emulation::last_error(); }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "the emulated launch failed";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = metasparse::emulation::device_attribute(attribute);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = metasparse::emulation::ptx_version();
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  using namespace metasparse::emulation;
  const int limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (config->dynamicSmemBytes > static_cast<size_t>(limit)) return failed(cudaErrorInvalidValue);
  return failed(run(*config, [=] { kernel(arguments...); }));
}

// ---- the device's side -------------------------------------------------------------------------

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

inline void __syncthreads() { metasparse::emulation::block_barrier(); }

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  using namespace metasparse::emulation;
  return from_bits<T>(warp_exchange(to_bits(value))[source & 31]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
  return __shfl_sync(mask, value, static_cast<int>(metasparse::emulation::lane()) ^ flip);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance) {
  const int own = static_cast<int>(metasparse::emulation::lane());
  return __shfl_sync(mask, value, own < distance ? own : own - distance);
}

inline unsigned __ballot_sync(unsigned, bool flag) {
  using namespace metasparse::emulation;
  const uint64_t* flags = warp_exchange(flag);
  unsigned word = 0;
  for (unsigned l = 0; l < warp_lanes(); ++l) word |= static_cast<unsigned>(flags[l]) << l;
  return word;
}

template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all) {
  using namespace metasparse::emulation;
  const uint64_t* values = warp_exchange(to_bits(value));
  *all = std::all_of(values, values + warp_lanes(), [&](uint64_t v) { return v == values[0]; });
  return *all ? mask : 0;
}

inline int __popc(unsigned word) { return __builtin_popcount(word); }

__attribute__((no_sanitize("thread"))) inline int atomicAdd(int* address, int value) {
  metasparse::emulation::log_atomic(address, sizeof(int));
  const int before = *address;
  *address += value;
  return before;
}

inline unsigned __float_as_uint(float value) {
  return static_cast<unsigned>(metasparse::emulation::to_bits(value));
}
inline long long __double_as_longlong(double value) {
  return static_cast<long long>(metasparse::emulation::to_bits(value));
}

using std::max;
using std::min;
