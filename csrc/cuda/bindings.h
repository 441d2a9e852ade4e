#pragma once
// The CUDA C++ kernels as ops of the dispatcher's namespaces metasparse_cuda and, for convolutions
// by Winograd's filtering, metasparse_winograd: the names and schemas of namespace metasparse, and
// for each op that does not take every call a predicate of the same arguments, which reads no data.
// Which backend serves an op of namespace metasparse on a GPU is decided elsewhere; asking for the
// impossible here is an error.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <cuda_runtime.h>
#include <torch/library.h>

#include <optional>

namespace metasparse::cuda {

using OptionalTensor = std::optional<at::Tensor>;

inline void check_launch(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op,
              ": the CUDA kernels could not be launched: ", cudaGetErrorString(error));
}

inline void refuse_unless(bool takes, const char* op, const char* library = "metasparse_cuda") {
  TORCH_CHECK_VALUE(takes, op, ": the CUDA C++ kernels do not take this call; ", library, "::", op,
                    "_supported tells which they take");
}

inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

// Each registers kernels for the dispatch key of `m`: of metasparse_cuda all but the convolutions,
// its convolutions, and metasparse_winograd.
void register_kernels(torch::Library& m);
void register_convolutions(torch::Library& m);
void register_winograd(torch::Library& m);

}  // namespace metasparse::cuda
