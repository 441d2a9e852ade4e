#include "build_info.h"

#include <torch/version.h>

#include "cpu/runtime/isa.h"

#ifdef __clang__
#define METASPARSE_COMPILER "Clang " __clang_version__
#else
#define METASPARSE_COMPILER "GCC " __VERSION__
#endif

namespace metasparse {

std::string build_info() {
  return std::string("torch=" TORCH_VERSION "\ncompiler=" METASPARSE_COMPILER "\ncpu_isa=") +
         cpu::isa_name(cpu::active_isa()) + "\n";
}

}  // namespace metasparse
