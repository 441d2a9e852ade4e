"""Registration and backend choice of the softmax head's ops; users call `implicit.softmax_head`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metasparse_ext import _library
from metasparse_ext.ops._register import fold
from metasparse_ext.reference import softmax_head as reference

_NAMES = ("softmax_head", "softmax_head_attach", "softmax_head_grad")


def choose(name: str) -> Callable:
    """The compiled op ``name``, or its reference where there is no compiled library."""
    if _library.loaded():
        return getattr(torch.ops.metasparse, name)
    return getattr(reference, name)


def _fake_solve(features, labels, center, lam, tolerance, max_iterations):
    per_task = labels.new_empty(labels.shape[0])
    residual = labels.new_empty(labels.shape[0], dtype=torch.float64)
    return torch.empty_like(center), per_task, residual, torch.empty_like(per_task)


def _fake_attach(weight, features, labels, center, lam):
    return torch.empty_like(weight)


def _fake_grad(grad, weight, features, labels, center, lam):
    return torch.empty_like(features), torch.empty_like(center), torch.empty_like(lam)


def _fold_rule(name: str) -> Callable:
    """The vmap rule of an op with several results, all leading with the task axis."""
    op = getattr(torch.ops.metasparse, name)

    def rule(info, in_dims, *args):
        batch = info.batch_size
        folded = [
            fold(arg, dim, batch) if isinstance(arg, torch.Tensor) else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        results = op(*folded)
        if isinstance(results, torch.Tensor):
            return results.unflatten(0, (batch, -1)), 0
        return tuple(r.unflatten(0, (batch, -1)) for r in results), (0,) * len(results)

    return rule


def _register() -> None:
    fakes = (_fake_solve, _fake_attach, _fake_grad)
    for name, fake in zip(_NAMES, fakes, strict=True):
        torch.library.register_fake(f"metasparse::{name}", fake)
        torch.library.register_vmap(f"metasparse::{name}", _fold_rule(name))
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"metasparse::{name}", device, torch.float32)


if _library.problem is None:
    _register()
