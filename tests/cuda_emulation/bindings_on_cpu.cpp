// The bindings as they are, their ops registered for CPU tensors too: the launches that they make
// are emulated.
#include "../../csrc/cg_checks.cpp"
#include "../../csrc/cuda/bindings.cpp"
#include "../../csrc/cuda/bindings_conv.cpp"
#include "../../csrc/masked_conv_checks.cpp"
#include "../../csrc/softmax_head_checks.cpp"
#include "../../csrc/mask_checks.cpp"

TORCH_LIBRARY_IMPL(metasparse_cuda, CPU, m) {
  metasparse::cuda::register_kernels(m);
  metasparse::cuda::register_convolutions(m);
}

TORCH_LIBRARY_IMPL(metasparse_winograd, CPU, m) { metasparse::cuda::register_winograd(m); }
