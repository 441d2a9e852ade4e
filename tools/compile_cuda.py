"""Compiles the CUDA C++ kernels for sm_80 and sm_90 and records their registers and spills.

    python tools/compile_cuda.py [--write]

Needs nvcc and no GPU. Prints a table; with ``--write`` also writes it to
benchmarks/results/cuda-compile.json, to which tests/test_cuda_build.py holds every later build.
Exit status 0 means: no warning, and no spill.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))
from cuda import NVCC_FLAGS, nvcc_release  # noqa: E402

RECORD = ROOT / "benchmarks" / "results" / "cuda-compile.json"
ARCHS = ("80", "90")

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")

#: {source: {kernel: {architecture: {registers, stack, spills}}}}, the last two in bytes.
Table = dict[str, dict[str, dict[str, dict[str, int]]]]


def nvcc() -> str | None:
    """The compiler's path."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")


def release() -> str | None:
    """The compiler's release, as ``"13.0"``."""
    compiler = nvcc()
    return compiler and nvcc_release(str(Path(compiler).resolve().parent.parent))


def include_folder() -> str:
    """Where the compiler has its headers. It may be called through a script that lies elsewhere."""
    command = [nvcc(), "--dryrun", "-x", "cu", "-c", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return os.path.normpath(re.search(r'INCLUDES="-I([^"]+?)"', said)[1].strip())


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def readable(symbol: str) -> str:
    """``cg_step_turn<float>`` of the mangled name of a kernel."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    name = re.sub(r"metasparse::cuda::(?:\(anonymous namespace\)::|_GLOBAL__N_\w+::)?", "", name)
    return name.strip().removeprefix("void ").split("(")[0]


def parse(log: str) -> dict[str, dict[str, dict[str, int]]]:
    """What ``ptxas -v`` says of each kernel."""
    kernels: dict[str, dict[str, dict[str, int]]] = {}
    found: dict[str, int] = {}
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            found = kernels.setdefault(readable(match[1]), {}).setdefault(match[2], {})
        elif match := _STACK.search(line):
            found.update(stack=int(match[1]), spills=int(match[2]) + int(match[3]))
        elif match := _REGISTERS.search(line):
            found["registers"] = int(match[1])
    return kernels


def compile_one(source: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Compiles host and device code of one source; a warning is an error."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc(), *NVCC_FLAGS, *targets, "-c", source, "-o", Path(folder, "object.o")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    log = result.stdout + result.stderr
    if result.returncode != 0:
        raise RuntimeError(f"nvcc does not compile {source.relative_to(ROOT)}:\n{log}")
    return parse(log)


def compile_all() -> Table:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tables = pool.map(compile_one, sources())
        return {source.name: table for source, table in zip(sources(), tables, strict=True)}


def spilling(table: Table) -> list[str]:
    """The kernels that keep values outside registers."""
    return [
        f"{source}: {kernel} for {arch}: {numbers}"
        for source, kernels in table.items()
        for kernel, archs in kernels.items()
        for arch, numbers in archs.items()
        if numbers["spills"] or numbers["stack"]
    ]


def main() -> int:
    if nvcc() is None:
        sys.exit("nvcc was not found; set CUDA_HOME or PATH")
    table = compile_all()
    for kernels in table.values():
        for kernel, archs in kernels.items():
            numbers = "  ".join(f"{arch} {n['registers']:3}" for arch, n in sorted(archs.items()))
            print(f"{kernel:56} registers: {numbers}")
    if "--write" in sys.argv[1:]:
        record = {"nvcc": release(), "flags": NVCC_FLAGS, "kernels": table}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    problems = spilling(table)
    print("\n".join(problems))
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())
