"""Whether the CUDA kernels are built, for which GPUs and with which flags. Needs no torch."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

# Also those of tools/compile_cuda.py, which records what they make of the kernels.
NVCC_FLAGS = [
    *("-O3", "-std=c++20", "--expt-relaxed-constexpr"),
    *("-Werror", "all-warnings", "--ptxas-options=-v"),
]
DEFAULT_ARCHS = "8.0;9.0+PTX"
# Asynchronous copies to shared memory.
OLDEST_ARCH = (8, 0)


class Decision(NamedTuple):
    """Whether CUDA is built, why, and for which entries of TORCH_CUDA_ARCH_LIST."""

    build: bool
    reason: str
    archs: tuple[str, ...] = ()


def nvcc_release(toolkit: str) -> str | None:
    """The release of a toolkit's compiler, as ``"13.0"``; None if it cannot be run."""
    try:
        command = [Path(toolkit, "bin", "nvcc"), "--version"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"release (\d+\.\d+)", output)
    return match and match[1]


def decide(
    environment: Mapping[str, str],
    torch_version: str,
    torch_cuda: str | None,
    toolkit: str | None,
    release_of: Callable[[str], str | None] = nvcc_release,
) -> Decision:
    """Decides from torch and the toolkit alone; whether a GPU is visible does not matter.

    Args:
        environment: ``METASPARSE_FORCE_CUDA``, 0 or 1, overrides the decision, and
            ``TORCH_CUDA_ARCH_LIST`` the GPUs.
        torch_version: The version of torch.
        torch_cuda: The version of CUDA that torch was built with, None for none.
        toolkit: The toolkit's folder, None for none.
        release_of: Finds the release of the toolkit's compiler.

    Raises:
        SystemExit: The build is forced but impossible, or the override is neither 0 nor 1.
    """
    forced = environment.get("METASPARSE_FORCE_CUDA")
    if forced not in (None, "0", "1"):
        raise SystemExit(f"METASPARSE_FORCE_CUDA: expected 0 or 1, got {forced!r}")
    if forced == "0":
        return Decision(False, "METASPARSE_FORCE_CUDA=0")
    archs = tuple(re.split(r"[;\s]+", environment.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHS))
    problem = _problem(torch_version, torch_cuda, toolkit, archs, release_of)
    if problem is None:
        return Decision(True, f"torch has CUDA {torch_cuda}, toolkit at {toolkit}", archs)
    if forced == "1":
        raise SystemExit(f"METASPARSE_FORCE_CUDA=1, but {problem}")
    return Decision(False, problem)


def _problem(
    torch_version: str,
    torch_cuda: str | None,
    toolkit: str | None,
    archs: tuple[str, ...],
    release_of: Callable[[str], str | None],
) -> str | None:
    """Why CUDA cannot be built, in a clause."""
    if torch_cuda is None:
        return f"torch {torch_version} was built without CUDA"
    if toolkit is None:
        return f"torch has CUDA {torch_cuda}, but no toolkit was found (CUDA_HOME)"
    release = release_of(toolkit)
    if release is None:
        return f"the toolkit at {toolkit} has no nvcc that runs"
    if release.split(".")[0] != torch_cuda.split(".")[0]:
        return f"torch has CUDA {torch_cuda}, but the nvcc of {toolkit} is of CUDA {release}"
    for arch in archs:
        match = re.match(r"(\d+)\.(\d+)", arch)
        if match and (int(match[1]), int(match[2])) < OLDEST_ARCH:
            return f"TORCH_CUDA_ARCH_LIST names {arch}, and the kernels need 8.0 or newer"
    return None


def decide_here(torch, cpp_extension) -> Decision:
    """:func:`decide` for the torch and the toolkit of this machine."""
    return decide(os.environ, torch.__version__, torch.version.cuda, cpp_extension.CUDA_HOME)
