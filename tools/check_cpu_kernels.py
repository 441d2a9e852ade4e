"""Compiles the CPU convolution kernels with sanitizers and runs them over odd and drawn shapes.

    python tools/check_cpu_kernels.py [--build FOLDER] [--draws N] [--seed S]

Needs a C++ compiler and no torch, of which the kernels know nothing. Every instruction set this CPU
has is run. Exit status 0 means: no invalid access, no undefined behaviour, and every result right.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU = ROOT / "csrc" / "cpu"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
COMMON = ["-std=c++20", "-g1", "-Wall", "-Wextra", "-fopenmp-simd", *SANITIZE]
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}


def drivers() -> list[Path]:
    """The convolution's sources that need no torch."""
    names = [*CPU.glob("conv/*.cpp"), CPU / "runtime/isa.cpp", CPU / "runtime/memory.cpp"]
    return [*sorted(names), ROOT / "tools" / "check_cpu_kernels.cpp"]


def compile_all(build: Path) -> Path:
    compiler = os.environ.get("CXX", "c++")
    x86 = platform.machine() in ("x86_64", "AMD64")
    jobs = [(source, build / f"{source.stem}.o", ["-O1"]) for source in drivers()]
    for isa, flags in ISA_FLAGS.items():
        if isa != "baseline" and not x86:
            continue
        for kernel in sorted((CPU / "kernels" / "conv").glob("*.cpp")):
            options = ["-O1", *flags, f"-DMETASPARSE_ISA={isa}"]
            jobs.append((kernel, build / f"kernel_{kernel.stem}_{isa}.o", options))

    def run(job):
        source, target, options = job
        subprocess.run([compiler, *COMMON, *options, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(run, jobs))
    program = build / "check_cpu_kernels"
    subprocess.run([compiler, *SANITIZE, *objects, "-pthread", "-o", program], check=True)
    return program


def supported() -> list[str]:
    """The instruction sets that this CPU has."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    needs = {"baseline": [], "avx2": ["avx2", "fma"], "avx512": ["avx512f", "avx512vl"]}
    return [isa for isa, wanted in needs.items() if all(flag in flags for flag in wanted)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, help="keep what is compiled in this folder")
    parser.add_argument("--draws", type=int, default=30, help="drawn shapes beside the fixed ones")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn shapes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        build = arguments.build or Path(scratch)
        build.mkdir(parents=True, exist_ok=True)
        program = compile_all(build)
        status = 0
        for isa in supported():
            environment = {**os.environ, "METASPARSE_CPU_ISA": isa}
            status |= subprocess.run(
                [program, str(arguments.draws), str(arguments.seed)], env=environment, check=False
            ).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
