#include "build_info.h"

#include <torch/version.h>

#ifdef __clang__
#define METASPARSE_COMPILER "Clang " __clang_version__
#else
#define METASPARSE_COMPILER "GCC " __VERSION__
#endif

namespace metasparse {

std::string build_info() { return "torch=" TORCH_VERSION "\ncompiler=" METASPARSE_COMPILER "\n"; }

}  // namespace metasparse
