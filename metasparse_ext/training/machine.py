"""What the numbers of a run depend on beside its configuration."""

from __future__ import annotations

from typing import Any

import torch

from metasparse_ext import _library
from metasparse_ext.ops import get_backend
from metasparse_ext.training.config import RunConfig


def machine(config: RunConfig) -> dict[str, Any]:
    """By name: torch, the instruction set, threads and backend of the kernels, and the GPU."""
    loaded = _library.problem is None
    found = {
        "torch": torch.__version__,
        "instruction set": _library.build_record().get("cpu_isa") if loaded else None,
        "threads": torch.get_num_threads(),
        "CPU backend": get_backend("cpu") if loaded else None,
        "CUDA backend": get_backend("cuda"),
    }
    if torch.device(config.device).type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(config.device)
    return found


def changes(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, in words."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [f"{name}: {now.get(name)}, it was {was.get(name)}" for name in names]
