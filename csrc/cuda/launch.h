#pragma once
// Kernel launches. Nothing here waits for the device, and every call may be captured in a graph.
#include <cuda_runtime.h>

namespace metasparse::cuda {

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks along x
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& shape, cudaStream_t stream,
                   Arguments... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shape.shared_bytes > kWithoutAsking) {
    // Per device, and cheap enough to say again at every launch.
    const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = shape.cluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// A number of the current device; 0 if there is none.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  const bool found = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return found ? value : 0;
}

// Whether a kernel can run in clusters of blocks: the device has them (9.0 and newer), and the code
// in use was compiled for them.
template <class Kernel>
bool runs_in_clusters(Kernel* kernel) {
  cudaFuncAttributes code{};
  return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9 &&
         cudaFuncGetAttributes(&code, kernel) == cudaSuccess && code.ptxVersion >= 90;
}

// The shared memory that a block may have: from 99 KiB (8.6, 8.9, 12.0) to 227 KiB (9.0, 10.0).
inline size_t shared_limit() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

inline unsigned ceil_div(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace metasparse::cuda
