#pragma once
#include <string>

namespace metasparse {

// "key=value" lines: the torch and compiler the library was built with, and the CPU instruction set
// in use.
std::string build_info();

}  // namespace metasparse
