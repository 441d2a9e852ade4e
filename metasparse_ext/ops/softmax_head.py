"""Registration and backend choice of the softmax head's ops; users call `implicit.softmax_head`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metasparse_ext import _library
from metasparse_ext.ops._register import register_autocast, register_fake, register_vmap
from metasparse_ext.reference import softmax_head as reference


def choose(name: str) -> Callable:
    """The compiled op ``name``, or its reference where there is no compiled library."""
    if _library.loaded():
        return getattr(torch.ops.metasparse, name)
    return getattr(reference, name)


def _fake_solve(features, labels, center, lam, tolerance, max_iterations):
    per_task = labels.new_empty(labels.shape[0])
    residual = labels.new_empty(labels.shape[0], dtype=torch.float64)
    return torch.empty_like(center), per_task, residual, torch.empty_like(per_task)


def _fake_grad(grad, weight, features, labels, center, lam):
    return torch.empty_like(features), torch.empty_like(center), torch.empty_like(lam)


def _register() -> None:
    fakes = {"softmax_head": _fake_solve, "softmax_head_grad": _fake_grad}
    for name, fake in fakes.items():
        register_fake(name, fake)
        register_vmap(name, getattr(torch.ops.metasparse, name))
        register_autocast(name)


if _library.problem is None:
    _register()
