"""The ops in PyTorch's own operators, for programs that leave PyTorch: ONNX and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table, meta_table

from metasparse_ext import _library, reference


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What each op of a forward pass is in PyTorch's own operators, for ``run_decompositions``.

    A program of ``torch.export`` calls the ops of this package, which no other runtime knows.
    Decomposed, it has operators of ``aten`` alone and can be saved or compiled elsewhere::

        program = torch.export.export(model.eval(), (images,))
        program = program.run_decompositions(metasparse_ext.decompositions())

    ``torch.onnx.export`` finds them by itself, given a module or a program.

    Results equal those of the ops up to rounding. Nothing is skipped: a mask multiplies its
    kernels. The number of tasks becomes part of the program; that of images may be dynamic. Only
    forward passes are decomposed.

    Returns:
        Operator to function, for ``ExportedProgram.run_decompositions`` or ``make_fx``; joined with
        ``torch.export.default_decompositions()`` where core operators are wanted. Empty where the
        compiled library is not in use, because programs then have no other operators.
    """
    if _library.problem is not None:
        return {}
    ops = torch.ops.metasparse
    return {
        ops.masked_conv.default: reference.masked_conv,
        ops.depthwise_conv.default: reference.depthwise_conv,
        ops.norm_act_pool.default: _norm_act_pool,
        ops.binary_mask.default: reference.binary_mask,
        ops.score_gate.default: reference.score_gate,
        ops.task_linear.default: reference.task_linear,
        ops.topk_mask.default: _topk_mask,
    }


def _register() -> None:
    """Puts them where ``torch.onnx.export`` looks for what ONNX has no function for.

    Fake tensors of symbolic sizes would run them too, in place of the ops' own fake kernels, if the
    ops were not among those with a function for the meta device.
    """
    for op, function in decompositions().items():
        decomposition_table.setdefault(op, function)
        meta_table.setdefault(op, op)


def _norm_act_pool(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
    pool: bool,
    norm_first: bool,
) -> tuple[Tensor, None, None, None]:
    """The op's first result; the others are for its derivatives."""
    y = reference.norm_act_pool(
        x,
        weight,
        bias,
        eps=eps,
        activation="relu" if relu else "none",
        pool=pool,
        order="norm_act_pool" if norm_first else "act_pool_norm",
    )
    return y, None, None, None


def _topk_mask(scores: Tensor, k: Tensor) -> Tensor:
    """Without a stable sort, which ONNX does not have: scores equal to the k-th are counted off."""
    ranked = scores.sort(dim=1, descending=True).values
    last = ranked.gather(1, (k - 1).clamp(min=0)[:, None])
    above, equal = scores > last, scores == last
    left = k[:, None] - above.sum(1, keepdim=True)
    mask = (above | (equal & (equal.cumsum(1) <= left))).to(scores.dtype)
    return mask.masked_fill(scores.isnan().any(1, keepdim=True), torch.nan)


_register()
