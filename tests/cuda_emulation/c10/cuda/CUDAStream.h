#pragma once
// In place of PyTorch's header: the emulated device has one stream.
#include <cuda_runtime.h>

namespace c10::cuda {

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
