"""What a compiler knows of OpenMP. Needs no torch."""

import subprocess
from collections.abc import Sequence

THREADS = "-fopenmp"
SIMD = "-fopenmp-simd"
_HAS_THREADS = "#ifndef _OPENMP\n#error no OpenMP\n#endif\n"


def _accepts(compiler: Sequence[str], flag: str, program: str) -> bool:
    command = [*compiler, flag, "-x", "c++", "-fsyntax-only", "-"]
    try:
        result = subprocess.run(command, input=program, text=True, capture_output=True, check=False)
    except OSError:
        return False
    return result.returncode == 0


def flags(compiler: Sequence[str]) -> list[str]:
    """The OpenMP flags that a compiler (a command) takes: of threads and ``simd``, or of one less.

    Without threads, as in Apple's clang, each op runs on the thread that calls it.
    """
    if _accepts(compiler, THREADS, _HAS_THREADS):
        return [THREADS]
    return [SIMD] if _accepts(compiler, SIMD, "") else []
