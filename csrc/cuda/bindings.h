#pragma once
#include <torch/library.h>

namespace metasparse::cuda {

// Registers the kernels of this folder for the dispatch key of `m`.
void register_kernels(torch::Library& m);

}  // namespace metasparse::cuda
