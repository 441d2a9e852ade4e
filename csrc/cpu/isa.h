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

}  // namespace metasparse::cpu
