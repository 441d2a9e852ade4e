"""Sparse meta-learning for PyTorch: task-batched ops, implicit differentiation, and learners."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from metasparse_ext._capture import capture
from metasparse_ext._info import info
from metasparse_ext._memory import keep_memory
from metasparse_ext.ops import (
    backend,
    binary_mask,
    decompositions,
    explain,
    get_backend,
    masked_conv2d,
    norm_act_pool,
    set_backend,
    topk_mask,
)

if TYPE_CHECKING:
    from metasparse_ext import algorithms, data, export, implicit, nn, presets, training
    from metasparse_ext.export import load_sparse
    from metasparse_ext.training import load

__version__ = "0.1.0"

__all__ = [
    "algorithms",
    "backend",
    "binary_mask",
    "capture",
    "data",
    "decompositions",
    "explain",
    "export",
    "get_backend",
    "implicit",
    "info",
    "keep_memory",
    "load",
    "load_sparse",
    "masked_conv2d",
    "nn",
    "norm_act_pool",
    "presets",
    "set_backend",
    "topk_mask",
    "training",
]

_MODULES = ("algorithms", "data", "export", "implicit", "nn", "presets", "training")
_FUNCTIONS = {"load": "training", "load_sparse": "export"}


def __getattr__(name: str) -> Any:
    """Imports a part of the package when it is first asked for."""
    if name in _MODULES:
        return importlib.import_module(f"metasparse_ext.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"metasparse_ext.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'metasparse_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_FUNCTIONS})
