"""The CUDA build: what is decided, and that everything compiles, without registers spilt."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import cuda_emulator
from torch.utils import cpp_extension

from metasparse_ext import _info

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "build_backend"), str(ROOT / "tools")]
import compile_cuda  # noqa: E402
from cuda import NVCC_FLAGS, decide  # noqa: E402

needs_nvcc = pytest.mark.skipif(compile_cuda.nvcc() is None, reason="nvcc is not installed")


# ---- the decision --------------------------------------------------------------------------------


def decision(environment=None, cuda="13.0", toolkit="/opt/cuda", release="13.1"):
    return decide(environment or {}, "2.11.0", cuda, toolkit, lambda _: release)


def test_cuda_is_built_where_torch_and_the_toolkit_agree():
    found = decision()
    assert found.build
    assert found.reason == "torch has CUDA 13.0, toolkit at /opt/cuda"
    assert found.archs == ("8.0", "9.0+PTX")


def test_the_architectures_can_be_chosen():
    assert decision({"TORCH_CUDA_ARCH_LIST": "9.0a 10.0;12.0+PTX"}).archs == (
        *("9.0a", "10.0", "12.0+PTX"),
    )


PROBLEMS = {
    "torch without CUDA": ({"cuda": None}, "torch 2.11.0 was built without CUDA"),
    "no toolkit": ({"toolkit": None}, "torch has CUDA 13.0, but no toolkit was found"),
    "no compiler": ({"release": None}, "the toolkit at /opt/cuda has no nvcc that runs"),
    "another major version": (
        {"release": "12.8"},
        "torch has CUDA 13.0, but the nvcc of /opt/cuda is of CUDA 12.8",
    ),
    "an old GPU": (
        {"environment": {"TORCH_CUDA_ARCH_LIST": "7.5;8.0"}},
        "TORCH_CUDA_ARCH_LIST names 7.5, and the kernels need 8.0 or newer",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_missing_is_said(change, sentence):
    found = decision(**change)
    assert not found.build
    assert sentence in found.reason
    forced = {**change.get("environment", {}), "METASPARSE_FORCE_CUDA": "1"}
    with pytest.raises(SystemExit, match="METASPARSE_FORCE_CUDA=1, but "):
        decision(**{**change, "environment": forced})


def test_cuda_can_be_refused():
    assert decision({"METASPARSE_FORCE_CUDA": "0"}) == (False, "METASPARSE_FORCE_CUDA=0", ())
    with pytest.raises(SystemExit, match="expected 0 or 1, got 'yes'"):
        decision({"METASPARSE_FORCE_CUDA": "yes"})


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["8.0", "9.0+PTX"], (8, 0), True),
        (["8.0", "9.0+PTX"], (8, 6), True),
        (["8.0", "9.0+PTX"], (7, 5), False),
        (["8.0", "9.0+PTX"], (12, 0), True),
        (["9.0"], (10, 0), False),
        (["9.0a"], (9, 0), True),
        (["9.0a"], (10, 0), False),
    ],
)
def test_info_says_whether_the_kernels_are_for_the_gpu(archs, capability, runs):
    text = _info._kernels({"cuda": "13.0", "cuda_archs": archs}, capability)
    assert text.startswith(f"CUDA kernels compiled for {', '.join(archs)}")
    assert text.endswith("not for this GPU's {}.{}".format(*capability)) is not runs


def test_info_repeats_why_there_are_no_kernels():
    record = {"cuda": None, "cuda_reason": "torch was built without CUDA"}
    assert _info._kernels(record, (9, 0)) == "no CUDA kernels: torch was built without CUDA"


# ---- the device code -----------------------------------------------------------------------------


def compiled() -> compile_cuda.Table:
    """What nvcc makes of the kernels; kept until a source or the compiler changes."""
    digest = hashlib.sha256(f"{compile_cuda.release()} {NVCC_FLAGS}".encode())
    for path in sorted((ROOT / "csrc" / "cuda").glob("*")):
        digest.update(path.read_bytes())
    kept = ROOT / "build" / "cuda_compile" / f"{digest.hexdigest()[:16]}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(".fresh")
        fresh.write_text(json.dumps(compile_cuda.compile_all()))
        fresh.rename(kept)
    return json.loads(kept.read_text())


@needs_nvcc
def test_every_kernel_compiles_without_spills_into_the_registers_on_record():
    table = compiled()
    assert compile_cuda.spilling(table) == []
    assert set(table) == {source.name for source in compile_cuda.sources()}
    for kernels in table.values():
        assert kernels
        for archs in kernels.values():
            assert set(archs) == {f"sm_{arch}" for arch in compile_cuda.ARCHS}
    record = json.loads(compile_cuda.RECORD.read_text())
    if record["nvcc"] == compile_cuda.release():  # another compiler allots other registers
        assert table == record["kernels"], "tools/compile_cuda.py --write records the new numbers"


def test_the_parser_reads_what_ptxas_writes():
    log = """
ptxas info    : Compiling entry function '_ZN10metasparse4cuda4packIfEEvi' for 'sm_80'
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 440 bytes cmem[0]
"""
    table = {"x.cu": compile_cuda.parse(log)}
    assert table == {
        "x.cu": {"pack<float>": {"sm_80": {"registers": 40, "stack": 8, "spills": 16}}}
    }
    assert len(compile_cuda.spilling(table)) == 1


# ---- the bindings --------------------------------------------------------------------------------


@needs_nvcc
@pytest.mark.skipif(shutil.which(cuda_emulator.COMPILER) is None, reason="no C++ compiler")
@pytest.mark.parametrize("bindings", ["bindings.cpp", "bindings_conv.cpp"])
def test_the_bindings_fit_the_real_headers(bindings):
    folders = [ROOT / "tests" / "cuda_headers"] if torch.version.cuda is None else []
    folders += [compile_cuda.include_folder(), *cpp_extension.include_paths()]
    command = [cuda_emulator.COMPILER, "-std=c++20", "-fsyntax-only", "-Wall", "-Werror"]
    command += [f"-isystem{folder}" for folder in folders]
    result = subprocess.run(
        [*command, ROOT / "csrc" / "cuda" / bindings],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_launchers_and_kernels_know_nothing_of_torch():
    for path in (ROOT / "csrc" / "cuda").glob("*"):
        if not path.name.startswith("bindings"):
            text = path.read_text()
            assert not any(name in text for name in ("ATen/", "c10", "torch/")), path.name
