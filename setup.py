"""Builds metasparse_ext._C against the torch of the running interpreter.

C++ always; CUDA where torch has CUDA and a toolkit is found (``METASPARSE_FORCE_CUDA=1/0``
overrides). The decision depends on torch and the toolkit alone, never on a GPU being visible, and
is printed in one line. ``METASPARSE_NO_BUILD=1`` leaves the library out: the package then runs its
reference ops, and needs neither a compiler nor torch to be installed.
"""

import hashlib
import json
import os
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

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
import isa  # noqa: E402
import openmp  # noqa: E402

VERSION = "0.1.0"
RECORD = "_build.json"  # lies beside the library
# The oldest Python whose stable ABI the library uses.
ABI3 = (3, 11)
NO_BUILD = os.environ.get("METASPARSE_NO_BUILD", "0") not in ("", "0")

DEPENDENCIES = [
    *("numpy>=1.26", "pillow>=10", "matplotlib>=3.8"),
    *("click>=8.1", "rich>=13", "safetensors>=0.4"),
]
ANY_TORCH = "torch>=2.11"


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def torch_requirement() -> str:
    """A library works with the minor release of torch that it was built for; sources with any."""
    if torch is None or NO_BUILD or "sdist" in sys.argv:
        return ANY_TORCH
    major, minor = torch.__version__.split(".")[:2]
    return f"torch=={major}.{minor}.*"


class BuildWithoutLibrary(build_py):
    """Leaves a record that the library was left out on purpose."""

    def run(self):
        super().run()
        if not self.editable_mode:
            record = {"version": VERSION, "left_out": True}
            path = Path(self.build_lib) / "metasparse_ext" / RECORD
            path.write_text(json.dumps(record, indent=2) + "\n")


def require_compiler(command: str) -> None:
    """Ends the build in words where there is no compiler."""
    if shutil.which(command) is None:
        raise SystemExit(
            f"metasparse_ext {VERSION}: expected a C++20 compiler, got none by the name "
            f"{command!r}: install one (such as g++ 11 or later), name yours in the variables CC "
            "and CXX, or set METASPARSE_NO_BUILD=1 to install the slow reference ops alone"
        )


def make_build_ext():
    class BuildExt(cpp_extension.BuildExtension):
        """BuildExtension, plus the CPU kernels per instruction set and a record of the build."""

        def build_extensions(self):
            for command in (self.compiler.compiler_so[0], *self.compiler.compiler_cxx[:1]):
                require_compiler(command)
            openmp_flags = openmp.flags(shlex.split(cpp_extension.get_cxx_compiler()))
            if openmp.THREADS not in openmp_flags:
                print(
                    f"metasparse_ext {VERSION}: the compiler refuses {openmp.THREADS}: "
                    "ops on the CPU run on one thread",
                    file=sys.stderr,
                )
            objects = self.compile_isa_kernels()
            for extension in self.extensions:
                extension.extra_compile_args["cxx"] = cxx_flags(openmp_flags)
                extension.extra_objects = [*extension.extra_objects, *objects]
            super().build_extensions()
            self.write_build_record(openmp.THREADS in openmp_flags)

        def compile_isa_kernels(self) -> list[str]:
            kernels = sources("csrc/cpu/kernels/**/*.cpp")
            newest_header = max(
                (path.stat().st_mtime for path in ROOT.glob("csrc/cpu/**/*.h")), default=0.0
            )
            jobs = []
            for name in isa.compiled_for():
                for kernel in kernels:
                    file = Path(kernel).relative_to("csrc/cpu/kernels").with_suffix(f".{name}.o")
                    jobs.append((kernel, Path(self.build_temp) / "isa" / file, isa.flags(name)))

            def compile_one(job) -> str:
                kernel, target, flags = job
                newest = max((ROOT / kernel).stat().st_mtime, newest_header)
                if not target.exists() or target.stat().st_mtime < newest:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    command = [*self.compiler.compiler_so, *KERNEL_FLAGS, *flags]
                    self.compiler.spawn([*command, "-c", str(ROOT / kernel), "-o", str(target)])
                return str(target)

            with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
                objects = []
                for target in pool.map(compile_one, jobs):
                    objects.append(target)
                    print(f"[{len(objects)}/{len(jobs)}] {target}", flush=True)
                return objects

        def write_build_record(self, has_openmp: bool):
            # Read before the library is loaded, to tell a mismatch from a crash.
            record = {
                "version": VERSION,
                "torch": torch.__version__,
                "schemas": hashlib.sha256((ROOT / "csrc/library.cpp").read_bytes()).hexdigest(),
                "cuda": torch.version.cuda if CUDA.build else None,
                "cuda_reason": CUDA.reason,
                "cuda_archs": CUDA.archs,
                "cpu_isas": isa.compiled_for(),
                "openmp": has_openmp,
            }
            library = Path(self.get_ext_fullpath("metasparse_ext._C"))
            (library.parent / RECORD).write_text(json.dumps(record, indent=2) + "\n")

        def copy_extensions_to_source(self):
            super().copy_extensions_to_source()
            record = Path("metasparse_ext") / RECORD
            self.copy_file(str(Path(self.build_lib) / record), str(ROOT / record))

    return BuildExt


def cxx_flags(openmp_flags: list[str]) -> list[str]:
    # OpenMP at compile time only: its symbols then resolve to the OpenMP runtime that torch itself
    # loads. Linking another one would put two thread pools on the same cores.
    flags = ["-O2", "-std=c++20", "-fvisibility=hidden", *openmp_flags]
    return [*flags, "-DNDEBUG", "-Wall", "-g0"]


KERNEL_FLAGS = [
    *("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-Wall", "-g0"),
    *isa.MATH_FLAGS,
    # Where code lands in the library must not decide how fast it is: 1.13 times, on Cascade Lake.
    *("-falign-functions=64", "-falign-loops=64"),
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
        extra_compile_args={"nvcc": cuda.NVCC_FLAGS},  # and build_extensions adds those of C++
        py_limited_api=True,
    )


if NO_BUILD:
    print(f"metasparse_ext {VERSION}: no library (METASPARSE_NO_BUILD)", file=sys.stderr)
    build = {"cmdclass": {"build_py": BuildWithoutLibrary}}
elif torch is None:
    build = {}
else:
    CUDA = cuda.decide_here(torch, cpp_extension)
    if CUDA.build:
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(CUDA.archs)
    print(
        f"metasparse_ext {VERSION}: C++ for torch {torch.__version__}, CPU kernels for "
        f"{'/'.join(isa.compiled_for())}; CUDA "
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
    install_requires=[torch_requirement(), *DEPENDENCIES],
    # Of namespaces, too: the folder of split lists has no module.
    packages=find_namespace_packages(
        include=["metasparse_ext", "metasparse_ext.*"], exclude=["*.__pycache__*"]
    ),
    package_data={
        "metasparse_ext": [
            *("py.typed", "ops/*.json", "presets/*.toml"),
            "data/split_lists/*.json",
        ]
    },
    **build,
)
