"""Calls of the Triton launchers on tensors of the meta device, for :mod:`.compile_triton`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metasparse_ext.ops import cuda
from metasparse_ext.triton import (
    cg,
    masked_weight,
    score_gate,
    task_cross_entropy,
    task_linear,
    topk_mask,
)

NORM_OPS = ("forward", "backward", "tangent", "double backward")
OTHER_OPS = ("cg_step", "topk_mask", "budget")
GLUE = (
    "masked weight",
    "masked weight pair",
    "masked weight backward",
    "score gate",
    "score gate grad",
    "loss",
    "loss backward",
    "loss double backward",
    "linear backward",
)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def norm_variant(
    op: str,
    dtype: torch.dtype = torch.float32,
    pool: bool = True,
    first: bool = True,
    side: int = 42,
) -> Callable[[], object]:
    """A call of one op of the norm_act_pool family, in the cut that the table gives it."""
    x, small = empty(4, 25, 64, side, side, dtype=dtype), side // 2
    y = empty(4, 25, 64, small, small, dtype=dtype) if pool else x
    c = empty(4, 64, dtype=dtype)
    point = (x, c, c, c, y.to(torch.uint8), 1e-5, pool, first)
    arguments = {
        "forward": (x, c, c, 1e-5, True, pool, first),
        "backward": (y, *point),
        "tangent": (x, c, c, *point),
        "double backward": (x, c, c, y, *point),
    }
    name = "norm_act_pool" + ("" if op == "forward" else "_" + op.replace(" ", "_"))
    args = arguments[op]
    return lambda: cuda.run_choice(name, cuda.choose(name, args), args)


def other_variant(op: str, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """A call of one of the ops on vectors."""
    v, scalars = empty(4, 112_000, dtype=dtype), empty(4, dtype=torch.float64)
    counts = empty(4, dtype=torch.int64)
    weight, mask = empty(4, 64, 64, 3, 3, dtype=dtype), empty(4, 64, 64, dtype=dtype)
    logits, labels = empty(4, 25, 5, dtype=dtype), empty(4, 25, dtype=torch.int64)
    loss, x = empty(4, dtype=dtype), empty(4, 25, 256, dtype=dtype)
    gates, losses, number = score_gate, task_cross_entropy, empty(dtype=dtype)
    calls = {
        "cg_step": lambda: cg.cg_step(v, v, v, v, v, *[scalars] * 3, counts, counts),
        "topk_mask": lambda: topk_mask.topk_mask(v, counts),
        "masked weight": lambda: masked_weight.masked_weight(weight, mask),
        "masked weight pair": lambda: masked_weight.masked_weight_pair(weight, mask, weight, mask),
        "masked weight backward": lambda: masked_weight.masked_weight_backward(
            weight, weight, mask
        ),
        "score gate": lambda: gates.score_gate(v),
        "score gate grad": lambda: gates.score_gate_grad(v, v, v, 2),
        "budget": lambda: gates.add_budget_gradient(v, v, number, number, 0.1),
        "loss": lambda: losses.task_cross_entropy(logits, labels),
        "loss backward": lambda: losses.task_cross_entropy_backward(loss, logits, labels),
        "loss double backward": lambda: losses.task_cross_entropy_double_backward(
            logits, loss, logits, labels
        ),
        "linear backward": lambda: task_linear.task_linear_backward(
            logits, x, empty(4, 5, 256, dtype=dtype)
        ),
    }
    return calls[op]
