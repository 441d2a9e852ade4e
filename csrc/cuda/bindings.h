#pragma once
// The CUDA C++ kernels as ops of the dispatcher's namespace metasparse_cuda: the names and schemas
// of namespace metasparse, and for each op a second, <op>_refusal, of the same arguments: why the
// kernels do not take a call on this device, or "". It reads no data. Which backend serves an op of
// namespace metasparse on a GPU is decided elsewhere; a call that is refused is an error here.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <cuda_runtime.h>
#include <torch/library.h>

#include <optional>
#include <string>

#include "launch.h"

namespace metasparse::cuda {

using OptionalTensor = std::optional<at::Tensor>;

// The error is taken from the CUDA runtime, too: there it would be reported by the next call that
// asks.
inline void check_launch(const char* op, cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  TORCH_CHECK(error == cudaSuccess, op,
              ": the CUDA kernels could not be launched: ", cudaGetErrorString(error));
}

inline void raise_refusal(const char* op, const std::string& reason) {
  TORCH_CHECK_VALUE(reason.empty(), op, ": the CUDA C++ kernels do not take this call: ", reason);
}

// Why blocks that need so much shared memory cannot run on the current device, or "".
inline std::string shared_memory_refusal(size_t bytes) {
  const size_t limit = shared_limit();
  if (bytes <= limit) return "";
  return c10::str("a block needs ", bytes, " bytes of shared memory, and the GPU has ", limit);
}

inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

// Each registers kernels for the dispatch key of `m`: all but the convolutions, and these.
void register_kernels(torch::Library& m);
void register_convolutions(torch::Library& m);

}  // namespace metasparse::cuda
