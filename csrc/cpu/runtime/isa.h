// Which instruction set the kernels run with.
//
// Every file of csrc/cpu/kernels is compiled once per instruction set, each time into a namespace
// of its own (metasparse::cpu::baseline, ::avx2, ::avx512), and each copy exports tables of
// function pointers. The choice between the copies is made once, at the first use: the widest set
// this CPU has, or the one that the environment variable METASPARSE_CPU_ISA names.
#pragma once

// Declares something once per instruction set, in its namespace. Elsewhere than on x86-64 there is
// one copy.
#if defined(__x86_64__)
#define METASPARSE_PER_ISA(...)         \
  namespace metasparse::cpu::baseline { \
  __VA_ARGS__                           \
  }                                     \
  namespace metasparse::cpu::avx2 {     \
  __VA_ARGS__                           \
  }                                     \
  namespace metasparse::cpu::avx512 {   \
  __VA_ARGS__                           \
  }
#else
#define METASPARSE_PER_ISA(...)         \
  namespace metasparse::cpu::baseline { \
  __VA_ARGS__                           \
  }
#endif

// The copy of `name`, declared by METASPARSE_PER_ISA, for an instruction set.
#define METASPARSE_COPY_FOR(isa, name) \
  ::metasparse::cpu::copy_for(isa, baseline::name, avx2::name, avx512::name)

namespace metasparse::cpu {

enum class Isa { baseline, avx2, avx512 };

// The instruction set in use. Throws std::runtime_error when METASPARSE_CPU_ISA is not one of
// "baseline", "avx2", "avx512", or names one that this CPU lacks.
Isa active_isa();

// Whether METASPARSE_CPU_ISA names it.
bool isa_is_named();

const char* isa_name(Isa isa);
bool cpu_supports(Isa isa);

namespace baseline {}
#if !defined(__x86_64__)
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

template <class Copy>
const Copy& copy_for(Isa isa, const Copy& baseline, const Copy& avx2, const Copy& avx512) {
  return isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : baseline;
}

}  // namespace metasparse::cpu
