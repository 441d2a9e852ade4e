// check_kernels OP DRAWS SEED: runs the CPU kernels of one op, of the instruction set in
// METASPARSE_CPU_ISA, and compares them with naive sums. tools/check_cpu_kernels.py compiles it.
#include <cstdlib>
#include <map>

#include "../../csrc/cpu/runtime/isa.h"
#include "check.h"

namespace metasparse::check {

static std::map<std::string, Op::Run>& ops() {
  static std::map<std::string, Op::Run> all;
  return all;
}

Op::Op(const char* name, Run run) { ops()[name] = run; }

}  // namespace metasparse::check

int main(int count, char** arguments) {
  using namespace metasparse;
  const auto found = check::ops().find(count == 4 ? arguments[1] : "");
  if (found == check::ops().end()) {
    std::fprintf(stderr, "usage: check_kernels OP DRAWS SEED, for an op that is linked\n");
    return 2;
  }
  const auto [cases, failures] =
      found->second(std::atoi(arguments[2]), static_cast<unsigned>(std::atoi(arguments[3])));
  std::printf("%-8s %-13s %6d cases, %d failures (%s draws, seed %s)\n",
              cpu::isa_name(cpu::active_isa()), found->first.c_str(), cases, failures, arguments[2],
              arguments[3]);
  return failures == 0 ? 0 : 1;
}
