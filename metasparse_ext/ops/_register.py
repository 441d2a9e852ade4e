"""What the ops share when they register: checked fakes, and vmap rules.

A mapped axis of vmap folds into the task axis.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class VmapInfo(Protocol):
    """What torch tells a vmap rule."""

    batch_size: int


def register_fake(name: str, fake: Callable[..., object]) -> None:
    """Registers how ``metasparse::name`` infers shapes, after the checks that its kernels make."""
    check = getattr(torch.ops.metasparse_check, name)

    def checked(*args: object) -> object:
        check(*args)
        return fake(*args)

    torch.library.register_fake(f"metasparse::{name}", checked)


def contiguous_like(tensor: Tensor) -> Tensor:
    """An empty result of the same shape, dtype and device."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def register_autocast(name: str) -> None:
    """``metasparse::name`` computes in float32 inside of autocast, on the CPU and on CUDA."""
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(f"metasparse::{name}", device, torch.float32)


def register(fakes: Mapping[str, Callable[..., object]], *, autocast: bool = True) -> None:
    """Registers ops whose tensors lead with the task axis.

    Args:
        fakes: How each infers the shapes of its results, from the arguments of csrc/library.cpp.
        autocast: Whether lower precisions of a surrounding region come in as float32, as torch's
            own norms and losses have it: the kernels compute in float32 and float64 alone.
    """
    for name, fake in fakes.items():
        register_fake(name, fake)
        register_vmap(name, getattr(torch.ops.metasparse, name))
        if autocast:
            register_autocast(name)


def fold(tensor: Tensor | None, in_dim: int | None, batch: int) -> Tensor | None:
    """(…, B, …) with its mapped axis at ``in_dim``, or an unmapped (T, …) -> (B * T, …)."""
    if tensor is None:
        return None
    if in_dim is None:
        tensor = tensor.unsqueeze(0).expand(batch, *tensor.shape)
    else:
        tensor = tensor.movedim(in_dim, 0)
    return tensor.flatten(0, 1)


def fold_into_tasks(
    op: Callable[..., Tensor | tuple[Tensor, ...]],
) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of an op whose tensor arguments and results all lead with the task axis."""

    def rule(info: VmapInfo, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        batch = info.batch_size
        folded = [
            fold(arg, dim, batch) if arg is None or isinstance(arg, Tensor) else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        results = op(*folded)
        if isinstance(results, Tensor):
            return results.unflatten(0, (batch, -1)), 0
        return tuple(r.unflatten(0, (batch, -1)) for r in results), (0,) * len(results)

    return rule


def register_vmap(name: str, op: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
    """Registers :func:`fold_into_tasks` for ``metasparse::name``."""
    torch.library.register_vmap(f"metasparse::{name}", fold_into_tasks(op))
