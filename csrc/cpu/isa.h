// Which instruction set the kernels run with.
//
// Every file of csrc/cpu/kernels is compiled three times, each time into its own namespace
// (metasparse::cpu::baseline, ::avx2, ::avx512), and each copy exports tables of function pointers.
// The choice between the copies is made once, at the first use: the widest set this CPU has, or the
// one that the environment variable METASPARSE_CPU_ISA names.
#pragma once

namespace metasparse::cpu {

enum class Isa { baseline, avx2, avx512 };

// The instruction set in use. Throws std::runtime_error when METASPARSE_CPU_ISA is not one of
// "baseline", "avx2", "avx512", or names one that this CPU lacks.
Isa active_isa();

// Whether METASPARSE_CPU_ISA names it.
bool isa_is_named();

const char* isa_name(Isa isa);
bool cpu_supports(Isa isa);

// Elsewhere than on x86 there is one copy, which goes by all three names.
namespace baseline {}
#if !defined(__x86_64__)
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

// The copy for an instruction set, of a table or of a function that returns one.
template <class Copy>
const Copy& copy_for(Isa isa, const Copy& baseline, const Copy& avx2, const Copy& avx512) {
  return isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : baseline;
}

}  // namespace metasparse::cpu
