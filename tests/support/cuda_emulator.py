"""The CUDA C++ kernels on the CPU: csrc/cuda compiled against the emulation in cuda_emulation/.

:func:`load` makes ``torch.ops.metasparse_cuda`` of the very sources that nvcc compiles, launchers
and bindings included, with kernels for CPU tensors. A change of a source compiles anew.
``load(logs=True)`` is the same with the kernels instrumented: ``findings()`` then says which
accesses of a launch no barrier orders. A process has one of the two.
"""

import fcntl
import functools
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
EMULATION = ROOT / "tests" / "cuda_emulation"
COMPILER = os.environ.get("CXX", "c++")
LOGGING = ["-fsanitize=thread,alignment"]
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-Wall", "-Wno-unknown-pragmas", f"-I{EMULATION}"]


def sources() -> list[Path]:
    """The kernels, the emulation, and the bindings that include the rest."""
    return [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), *sorted(EMULATION.glob("*.cpp"))]


def _digest() -> str:
    """Changes with anything that the library is made of."""
    folders = (ROOT / "csrc", ROOT / "csrc" / "cuda", EMULATION, EMULATION / "c10" / "cuda")
    digest = hashlib.sha256(f"{COMPILER} {torch.__version__}".encode())
    digest.update(Path(__file__).read_bytes())
    for folder in folders:
        for path in sorted(folder.glob("*.*")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(build: Path, logs: bool) -> None:
    torch_folders = [f"-isystem{path}" for path in cpp_extension.include_paths()]

    def run(source: Path) -> Path:
        kernels = source.suffix == ".cu"
        target = build / f"{source.stem}{source.suffix}{'.logs' if kernels and logs else ''}.o"
        language = ["-x", "c++", *(LOGGING * logs)] if kernels else torch_folders
        if target.exists():
            return target
        unfinished = target.with_suffix(".unfinished")
        subprocess.run([COMPILER, *FLAGS, *language, "-c", source, "-o", unfinished], check=True)
        return unfinished.rename(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(run, reversed(sources())))  # the bindings take longest
    unfinished = build / f"unfinished-{_name(logs)}"
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries += ["-lc10", "-ltorch_cpu", "-ltorch"]
    subprocess.run([COMPILER, "-shared", *objects, *libraries, "-o", unfinished], check=True)
    unfinished.rename(build / _name(logs))


def _name(logs: bool) -> str:
    return "logging.so" if logs else "library.so"


def compile_check(folder: Path) -> Path:
    """A library of cuda_emulation/races_check.cu and the emulation alone."""
    objects = []
    for name in ("races_check.cu", "races.cpp", "emulation.cpp"):
        kernels = [*LOGGING, "-x", "c++"] if name.endswith(".cu") else []
        objects.append(folder / f"{name}.o")
        command = [COMPILER, *FLAGS, *kernels, "-c", EMULATION / name, "-o", objects[-1]]
        subprocess.run(command, check=True)
    library = folder / "races_check.so"
    subprocess.run([COMPILER, "-shared", *objects, "-o", library], check=True)
    return library


@functools.cache
def load(*, logs: bool = False):
    """The namespace of ops, compiled when need be. Safe to call from several processes."""
    build = ROOT / "build" / "cuda_emulation" / _digest()
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (build / _name(logs)).exists():
            _compile(build, logs)
    torch.ops.load_library(str(build / _name(logs)))
    return torch.ops.metasparse_cuda
