"""Which implementation of the ops runs: chosen by a table, or forced for tests and benchmarks.

There is one switch a device. On the CPU it concerns the convolutions (docs/kernels.md), on CUDA
every op (docs/triton.md); from outside, the environment variables below set it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from metasparse_ext import _library

#: Environment variables that force a backend from outside, by device.
VARIABLES = {"cpu": "METASPARSE_CONV_BACKEND", "cuda": "METASPARSE_CUDA_BACKEND"}
AUTOMATIC = "automatic"
CUDA_BACKENDS = ("dense", "triton", "cuda", "winograd")

_cuda = AUTOMATIC


def backend(device: str) -> str:
    """The backend forced on ``"cpu"`` or ``"cuda"``, or ``"automatic"``."""
    _check_device(device)
    return torch.ops.metasparse.conv_backend() if device == "cpu" else _cuda


def set_backend(device: str, name: str) -> None:
    """Forces a backend on a device, or with ``"automatic"`` leaves the choice to the table.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        name: On CUDA ``"dense"`` (PyTorch's own operators), ``"triton"``, ``"cuda"`` (CUDA C++) or
            ``"winograd"`` (convolutions in CUDA C++ by Winograd's filtering); a call that it
            cannot serve goes by the table. On the CPU one of the convolution schemes
            of docs/kernels.md; a call that it cannot serve is an error.

    Raises:
        ValueError: An unknown device or name.
        RuntimeError: The CPU has no choice: the compiled library is not in use.
    """
    _check_device(device)
    if device == "cpu":
        if _library.problem is not None:
            raise RuntimeError(f"set_backend: the CPU has one backend only: {_library.problem}")
        torch.ops.metasparse.set_conv_backend(name)
        return
    global _cuda
    _cuda = _checked(name)


@contextlib.contextmanager
def forced_backend(device: str, name: str) -> Iterator[None]:
    """:func:`set_backend` for the duration of a ``with`` block."""
    before = backend(device)
    set_backend(device, name)
    try:
        yield
    finally:
        set_backend(device, before)


def _check_device(device: str) -> None:
    if device not in VARIABLES:
        raise ValueError(f"backend: expected device to be 'cpu' or 'cuda', got {device!r}")


def _checked(name: str) -> str:
    known = (AUTOMATIC, *CUDA_BACKENDS)
    if name not in known:
        raise ValueError(f"backend: expected one of {', '.join(known)} on cuda, got {name!r}")
    return name


_cuda = _checked(os.environ.get(VARIABLES["cuda"]) or AUTOMATIC)
