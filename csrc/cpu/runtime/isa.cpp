#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace metasparse::cpu {

namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512};

const char* named_isa() {
  const char* name = std::getenv("METASPARSE_CPU_ISA");
  return name == nullptr ? "" : name;
}

Isa choose_isa() {
  const std::string named = named_isa();
  if (named.empty()) {
    Isa best = Isa::baseline;
    for (Isa isa : kAll) {
      if (cpu_supports(isa)) best = isa;
    }
    return best;
  }
  for (Isa isa : kAll) {
    if (named != isa_name(isa)) continue;
    if (cpu_supports(isa)) return isa;
    throw std::runtime_error("METASPARSE_CPU_ISA asks for " + named +
                             ", which this CPU does not have");
  }
  throw std::runtime_error("METASPARSE_CPU_ISA must be baseline, avx2 or avx512, but is " + named);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

// All that build_backend/isa.py lets the compiler use.
bool cpu_supports(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("fma");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return isa == Isa::baseline;
#endif
}

Isa active_isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

bool isa_is_named() {
  static const bool named = *named_isa() != '\0';
  return named;
}

}  // namespace metasparse::cpu
