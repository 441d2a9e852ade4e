#include "build_info.h"

#include <torch/version.h>

namespace metasparse {

std::string build_info() {
  return std::string("torch=" TORCH_VERSION "\n") + "compiler=" __VERSION__ "\n";
}

}  // namespace metasparse
