// The bindings as they are, their ops registered for CPU tensors too: the launches that they make
// are emulated.
#include "../../csrc/checks/cg.cpp"
#include "../../csrc/checks/mask.cpp"
#include "../../csrc/checks/masked_conv.cpp"
#include "../../csrc/checks/softmax_head.cpp"
#include "../../csrc/checks/window.cpp"
#include "../../csrc/cuda/bindings.cpp"
#include "../../csrc/cuda/bindings_conv.cpp"
#include "races.h"

TORCH_LIBRARY_FRAGMENT(metasparse_cuda, m) {
  // What the log of accesses has found since it was last asked; nothing where none is kept.
  m.def("findings() -> str", [] {
    std::string text(1 << 14, ' ');
    text.resize(metasparse::emulation::take_findings(text.data(), text.size()));
    return text;
  });
  m.def("logs_accesses() -> bool", [] { return metasparse::emulation::logs_accesses(); });
  m.def("last_error() -> int", [] { return static_cast<int64_t>(cudaGetLastError()); });
}

TORCH_LIBRARY_IMPL(metasparse_cuda, CPU, m) {
  metasparse::cuda::register_kernels(m);
  metasparse::cuda::register_convolutions(m);
}
