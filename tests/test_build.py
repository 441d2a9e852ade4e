"""Loading of the compiled library, and what happens without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metasparse_ext as ms
from build_backend import isa, openmp
from metasparse_ext import _info, _library

PACKAGE = Path(ms.__file__).parent

USE_AN_OP = """
import sys, warnings
# An editable install would lend the copy its own library.
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, metasparse_ext as ms
    at_import = len(caught)
    for _ in range(3):
        y = ms.masked_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), torch.ones(1, 1))
    assert y.item() == 9.0
print(at_import, len(caught))
print(ms.info()["library"])
print(caught[0].message)
"""


def run_without_library(folder: Path, record: dict | None) -> list[str]:
    """Runs an op on a copy of the package that lacks its library; the lines it prints."""
    copy = folder / "metasparse_ext"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("_C*", "_build.json", "*.pyc"))
    if record is not None:
        (copy / "_build.json").write_text(json.dumps(record))
    result = subprocess.run(
        [sys.executable, "-c", USE_AN_OP], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "is missing"),
        ({"torch": torch.__version__}, "could not be loaded"),
        ({"torch": "1.0.0"}, f"for torch 1.0.0, but torch {torch.__version__} is running"),
    ],
    ids=["no library", "no library beside its record", "another torch"],
)
def test_without_library_the_reference_runs_and_says_so_once(tmp_path, record, reason):
    counts, library, warning = run_without_library(tmp_path, record)
    assert counts == "1 2"  # one warning at import, one at the first op
    assert reason in warning
    assert "pip install" in warning
    assert library == f"not loaded: {warning}"


def test_the_library_is_in_use_here():
    """Every other test would quietly test the reference against itself."""
    assert _library.problem is None
    assert ms.info()["library"].startswith("loaded")


def test_info_names_every_backend():
    info = ms.info()
    assert info["torch"] == torch.__version__
    assert info["cuda"].split()[0] in ("yes", "no")
    assert "(" in info["cuda"]
    assert info["triton"].split()[0] in ("yes", "no")
    assert info["cpu"]


def test_the_stable_abi_is_what_the_library_uses():
    names = [path.name for path in PACKAGE.glob("_C*")]
    assert names == ["_C.abi3.so"]


def test_only_one_openmp_runtime():
    """A second one would double the threads; the library takes the one torch loads."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    output = subprocess.run(
        ["readelf", "-d", str(PACKAGE / "_C.abi3.so")], capture_output=True, text=True, check=True
    ).stdout
    needed = [line for line in output.splitlines() if "NEEDED" in line]
    assert needed
    assert not [line for line in needed if "omp" in line]


@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_x86_has_a_copy_of_the_kernels_per_instruction_set(machine):
    assert isa.compiled_for(machine) == ("baseline", "avx2", "avx512")


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ppc64le", ""])
def test_other_machines_have_the_portable_kernels(machine):
    assert isa.compiled_for(machine) == ("baseline",)


def test_the_cpu_runs_what_the_compiler_may_use():
    """The library's own check of the CPU asks for every feature in the compiler's flags."""
    source = (PACKAGE.parent / "csrc/cpu/runtime/isa.cpp").read_text()
    for name in ("avx2", "avx512"):
        case = source.split(f"case Isa::{name}:\n      return __builtin")[1].split(";")[0]
        wanted = {flag[2:] for flag in isa.flags(name) if flag.startswith("-m")}
        asked = set(case.replace("_cpu_supports", "").split('"')[1::2])
        assert asked == {flag for flag in wanted if not flag.startswith("prefer")}


COMPILER = "c++"


def refusing_compiler(folder: Path, *flags: str) -> str:
    """A compiler that stops at any of these flags, as Apple's does at -fopenmp."""
    script = folder / "c++"
    refused = "|".join(flags)
    script.write_text(
        f'#!/bin/sh\nfor a; do case "$a" in {refused}) exit 1;; esac; done\nexec {COMPILER} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")
@pytest.mark.skipif(os.name == "nt", reason="no /bin/sh")
def test_a_compiler_without_openmp_builds_all_the_same(tmp_path):
    assert openmp.flags([COMPILER]) == ["-fopenmp"]
    assert openmp.flags([refusing_compiler(tmp_path, "-fopenmp")]) == ["-fopenmp-simd"]
    neither = refusing_compiler(tmp_path, "-fopenmp", "-fopenmp-simd")
    assert openmp.flags([neither]) == []


def test_info_tells_of_a_build_without_openmp(monkeypatch):
    record = _library.build_record()
    for has_openmp in (True, False):  # this one may be either
        changed = {**record, "openmp": has_openmp}
        monkeypatch.setattr(_info._library, "build_record", lambda changed=changed: changed)
        threads = ms.info()["threads"]
        assert (threads == str(torch.get_num_threads())) == has_openmp
        assert threads.endswith("1 of the library (built without OpenMP)") != has_openmp


def test_setup_needs_no_uname():
    """Windows has none."""
    code = "import os, runpy, sys, torch; del os.uname; sys.argv = ['setup.py', '--version'];"
    result = subprocess.run(
        [sys.executable, "-c", f"{code} runpy.run_path('setup.py', run_name='__main__')"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"CPU kernels for {'/'.join(isa.compiled_for())};" in result.stderr
