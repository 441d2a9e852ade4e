"""Builds metasparse_ext._C against the torch of the running interpreter.

C++ always; CUDA where torch has CUDA and a toolkit is found (``METASPARSE_FORCE_CUDA=1/0``
overrides). The decision depends on torch and the toolkit alone, never on a GPU being visible, and
is printed in one line.
"""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import find_packages, setup

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = cpp_extension = None  # metadata and source distributions need no torch

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "build_backend"))
import cuda  # noqa: E402

VERSION = "0.1.0"
RECORD = "_build.json"  # lies beside the library
# The oldest Python whose stable ABI the library uses.
ABI3 = (3, 11)

# A kernel source is compiled once per instruction set and chosen at run time (cpu/runtime/isa.cpp).
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
}


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def isa_flags() -> dict[str, list[str]]:
    machine = os.uname().machine
    return ISA_FLAGS if machine in ("x86_64", "AMD64") else {"baseline": []}


def make_build_ext():
    class BuildExt(cpp_extension.BuildExtension):
        """BuildExtension, plus the CPU kernels per instruction set and a record of the build."""

        def build_extensions(self):
            objects = self.compile_isa_kernels()
            for extension in self.extensions:
                extension.extra_objects = [*extension.extra_objects, *objects]
            super().build_extensions()
            self.write_build_record()

        def compile_isa_kernels(self) -> list[str]:
            kernels = sources("csrc/cpu/kernels/**/*.cpp")
            newest_header = max(
                (path.stat().st_mtime for path in ROOT.glob("csrc/cpu/**/*.h")), default=0.0
            )
            jobs = []
            for isa, flags in isa_flags().items():
                for kernel in kernels:
                    name = Path(kernel).relative_to("csrc/cpu/kernels").with_suffix(f".{isa}.o")
                    target = Path(self.build_temp) / "isa" / name
                    jobs.append((kernel, target, isa, flags))

            def compile_one(job) -> str:
                kernel, target, isa, flags = job
                newest = max((ROOT / kernel).stat().st_mtime, newest_header)
                if not target.exists() or target.stat().st_mtime < newest:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    command = [*self.compiler.compiler_so, *KERNEL_FLAGS, *flags]
                    command += [f"-DMETASPARSE_ISA={isa}", f"-DMETASPARSE_ISA_{isa.upper()}"]
                    self.compiler.spawn([*command, "-c", str(ROOT / kernel), "-o", str(target)])
                return str(target)

            with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
                return list(pool.map(compile_one, jobs))

        def write_build_record(self):
            # Read before the library is loaded, to tell a mismatch from a crash.
            record = {
                "version": VERSION,
                "torch": torch.__version__,
                "schemas": hashlib.sha256((ROOT / "csrc/library.cpp").read_bytes()).hexdigest(),
                "cuda": torch.version.cuda if CUDA.build else None,
                "cuda_reason": CUDA.reason,
                "cuda_archs": CUDA.archs,
                "cpu_isas": list(isa_flags()),
            }
            library = Path(self.get_ext_fullpath("metasparse_ext._C"))
            (library.parent / RECORD).write_text(json.dumps(record, indent=2) + "\n")

        def copy_extensions_to_source(self):
            super().copy_extensions_to_source()
            record = Path("metasparse_ext") / RECORD
            self.copy_file(str(Path(self.build_lib) / record), str(ROOT / record))

    return BuildExt


# -fopenmp at compile time only: its symbols then resolve to the OpenMP runtime that torch itself
# loads. Linking another one would put two thread pools on the same cores.
CXX_FLAGS = ["-O2", "-std=c++20", "-fvisibility=hidden", "-fopenmp", "-DNDEBUG", "-Wall", "-g0"]
# Kernels may contract a * b + c and assume no trapping, but keep NaN, infinities and signed zeros.
KERNEL_FLAGS = [
    *("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wall", "-g0"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    # gcc 12 takes the undefined lanes of its own AVX-512 intrinsics for uninitialised variables
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]


def make_extension():
    kind = cpp_extension.CUDAExtension if CUDA.build else cpp_extension.CppExtension
    files = [
        "*.cpp",
        "autograd/*.cpp",
        "checks/*.cpp",
        "cpu/*.cpp",
        "cpu/conv/*.cpp",
        "cpu/runtime/*.cpp",
    ]
    files += ["dense/*.cpp"]
    if CUDA.build:
        files += ["cuda/*.cpp", "cuda/*.cu"]
    return kind(
        "metasparse_ext._C",
        sources=[source for pattern in files for source in sources(f"csrc/{pattern}")],
        extra_compile_args={
            "cxx": CXX_FLAGS,
            "nvcc": cuda.NVCC_FLAGS,
        },
        py_limited_api=True,
    )


if torch is None:
    build = {}
else:
    CUDA = cuda.decide_here(torch, cpp_extension)
    if CUDA.build:
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(CUDA.archs)
    print(
        f"metasparse_ext {VERSION}: C++ for torch {torch.__version__}, CPU kernels for "
        f"{'/'.join(isa_flags())}; CUDA "
        f"{f'for {chr(32).join(CUDA.archs)}' if CUDA.build else 'no'} ({CUDA.reason})",
        file=sys.stderr,
    )
    build = {
        "ext_modules": [make_extension()],
        "cmdclass": {"build_ext": make_build_ext()},
        "options": {"bdist_wheel": {"py_limited_api": f"cp{ABI3[0]}{ABI3[1]}"}},
    }

setup(
    version=VERSION,
    packages=find_packages(include=["metasparse_ext", "metasparse_ext.*"]),
    package_data={"metasparse_ext": ["py.typed", RECORD, "ops/*.json", "presets/*.toml"]},
    **build,
)
