"""Which implementation of the ops runs: chosen by a table, or forced for tests and benchmarks.

There is one switch a device. On the CPU it concerns the convolutions (docs/kernels.md), on CUDA
every op (docs/triton.md); from outside, the environment variables below set it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

import torch

from metasparse_ext import _library
from metasparse_ext._arguments import require_choice, require_type

#: Environment variables that force a backend from outside, by device.
VARIABLES = {"cpu": "METASPARSE_CONV_BACKEND", "cuda": "METASPARSE_CUDA_BACKEND"}
AUTOMATIC = "automatic"
CUDA_BACKENDS = ("dense", "triton", "cuda")

_cuda: str | None = None  # until it is first asked for, when the environment is read


def get_backend(device: str = "cpu") -> str:
    """The backend forced on ``"cpu"`` or ``"cuda"``, or ``"automatic"``.

    Raises:
        ValueError: An unknown device, or a name in the device's environment variable that is none.
    """
    require_choice("get_backend", "device", device, VARIABLES)
    if device == "cpu":
        return torch.ops.metasparse.conv_backend()
    global _cuda
    if _cuda is None:
        named = os.environ.get(VARIABLES["cuda"]) or AUTOMATIC
        require_choice("get_backend", VARIABLES["cuda"], named, (AUTOMATIC, *CUDA_BACKENDS))
        _cuda = named
    return _cuda


def set_backend(name: str, device: str = "cpu") -> None:
    """Forces a backend on a device, or with ``"automatic"`` leaves the choice to the table.

    Args:
        name: On CUDA ``"dense"`` (PyTorch's own operators), ``"triton"`` or ``"cuda"`` (CUDA
            C++); a call that it cannot serve goes by the table. On the CPU one of the convolution
            algorithms of docs/kernels.md; a call that it cannot serve is an error.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: An unknown device or name.
        RuntimeError: The CPU has no choice: the compiled library is not in use.
    """
    require_choice("set_backend", "device", device, VARIABLES)
    if device == "cpu":
        require_type("set_backend", "name", name, str, "a name")
        if _library.problem is not None:
            raise RuntimeError(f"set_backend: the CPU has one backend only: {_library.problem}")
        torch.ops.metasparse.set_conv_backend(name)
        return
    global _cuda
    require_choice("set_backend", "name", name, (AUTOMATIC, *CUDA_BACKENDS))
    _cuda = name


@contextlib.contextmanager
def backend(name: str, device: str = "cpu") -> Generator[None]:
    """:func:`set_backend` for the duration of a ``with`` block::

    with ms.backend("direct"):
        y = ms.masked_conv2d(x, weight, mask)
    """
    before = get_backend(device)
    set_backend(name, device)
    try:
        yield
    finally:
        set_backend(before, device)
