"""The instruction sets that the CPU kernels are compiled for, and those of this machine's CPU.

A kernel source is compiled once per instruction set; csrc/cpu/runtime/isa.cpp chooses at run time.
"""

import platform
from pathlib import Path

#: What a CPU must have, in the words of both ``-m`` and Linux's /proc/cpuinfo.
FEATURES = {
    "baseline": (),
    "avx2": ("avx2", "fma"),
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"),
}
_WIDTH = {"avx512": ("-mprefer-vector-width=512",)}

#: Kernels may contract a * b + c and assume no trapping, but keep NaN, infinities, signed zeros.
MATH_FLAGS = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")


def compiled_for(machine: str | None = None) -> tuple[str, ...]:
    """The instruction sets to compile for a machine, by its name in ``uname``; default: this one.

    Elsewhere than on x86-64 that is the portable baseline alone.
    """
    machine = platform.machine() if machine is None else machine
    return tuple(FEATURES) if machine in ("x86_64", "AMD64") else ("baseline",)


def flags(isa: str) -> list[str]:
    """What the compiler is told for an instruction set, beside a macro of its name."""
    named = [f"-m{feature}" for feature in FEATURES[isa]]
    return [*named, *_WIDTH.get(isa, ()), f"-DMETASPARSE_ISA={isa}"]


def supported() -> list[str]:
    """The compiled instruction sets that this CPU has, as far as /proc/cpuinfo tells."""
    cpuinfo = Path("/proc/cpuinfo")
    known = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [isa for isa in compiled_for() if known.issuperset(FEATURES[isa])]
