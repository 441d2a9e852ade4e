"""A mask of exactly the k best scores, per layer, per task or over a whole network."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext._arguments import (
    refuse,
    require_choice,
    require_floating,
    require_like,
    require_number,
    typed,
)
from metasparse_ext.ops._operands import is_readable
from metasparse_ext.ops._register import contiguous_like, register

_OP = "topk_mask"
_GRANULARITIES = ("weight", "kernel", "channel")
_SCOPES = ("layer", "task", "network")

Scores = TypeVar("Scores", Tensor, Sequence[Tensor], Mapping[str, Tensor])


def topk_mask(
    scores: Scores,
    density: float | Tensor,
    *,
    granularity: Literal["weight", "kernel", "channel"] = "weight",
    scope: Literal["layer", "network", "task"] = "layer",
    tasks: bool | None = None,
) -> Scores:
    """The mask that keeps a given fraction of a network: its largest scores.

    Of the n units that share a budget exactly ``k = round(density * n)`` get a 1 (halves round to
    even, as Python's ``round``), the others a 0. Units with equal scores rank by index, lowest
    first; -0.0 and +0.0 are equal. Larger is better: magnitude pruning passes ``weight.abs()``.

    ``granularity`` says what a unit is, ``scope`` which units share a budget:

    - ``"weight"``: an entry of ``scores``. The mask has the shape of the scores.
    - ``"kernel"``: a kernel (o, i), whose score is the mean of its taps. The mask is (O, I) or
      (T, O, I), as :func:`masked_conv2d` takes it.
    - ``"channel"``: an output channel o, whose score is the mean of all of its scores. The mask is
      (O, I) or (T, O, I), its rows constant.

    - ``"layer"``: each tensor, for each task, has a budget of its own.
    - ``"task"``: the tensors of a task share one.
    - ``"network"``: all tensors of all tasks share one. (Without a task axis the same as
      ``"task"``.)

    Units that share a budget are indexed tensor by tensor. The derivative is taken to be the
    identity from a unit's score to the mask entries that it sets (straight-through), in reverse and
    in forward mode; a mean spreads it evenly over its entries. Pass detached scores for none.

    Args:
        scores: A tensor, or a sequence or mapping of tensors, one a layer: a weight of any layer,
            (O, I, kh, kw) of a ``Conv2d``, (O, I, k) of a ``Conv1d``, (O, I) of a ``Linear``, one
            score a kernel (O, I), or a vector (n,); or each with a leading task axis. float32 or
            float64; lower precisions are ranked as float32.
        density: Fraction kept, from 0 to 1: a number, a tensor of one value, or a tensor (T,) of
            one value a task. A tensor is only read: no gradient reaches it.
        granularity: What is kept or pruned as one.
        scope: What shares a budget.
        tasks: Whether every tensor leads with a task axis T. By default (T, O, I, kh, kw), of five
            dimensions, does and tensors of one, two and four dimensions do not; three dimensions
            are (T, O, I) or (O, I, k), so they need a word.

    Returns:
        Zeros and ones in the dtype of the scores and the structure of ``scores``.

    Raises:
        ValueError: A shape, device, density or option does not fit, three dimensions come without
            ``tasks``, or scores hold NaN, which has no rank.
            (On a GPU, where an error would cost a synchronisation, and in the plain PyTorch
            reference the mask of units that share a budget with NaN is NaN instead.)
        TypeError: ``scores`` or ``density`` is of another type or dtype.
    """
    require_choice(_OP, "granularity", granularity, _GRANULARITIES)
    require_choice(_OP, "scope", scope, _SCOPES)
    require_choice(_OP, "tasks", tasks, (True, False, None))
    _check_density(density)
    names, layers = _layers(scores)
    stacked = [
        _check_scores(name, layer, granularity, tasks)
        for name, layer in zip(names, layers, strict=True)
    ]
    if not layers:
        return _like(scores, [])
    # from here on every layer leads with a task axis
    batched = [
        layer if leads else layer.unsqueeze(0) for layer, leads in zip(layers, stacked, strict=True)
    ]
    units = [_units(layer, granularity) for layer in batched]
    if scope == "layer":
        masks = [_topk(unit, density) for unit in units]
    else:
        for name, layer in zip(names, layers, strict=True):
            require_like(_OP, name, layer, names[0], layers[0], dtype=False)
        masks = _shared_budgets(names, layers, stacked, units, density, scope)
    results = [
        _from_units(mask, layer, granularity) for mask, layer in zip(masks, batched, strict=True)
    ]
    return _like(
        scores,
        [m if leads else m.squeeze(0) for m, leads in zip(results, stacked, strict=True)],
    )


def _shared_budgets(
    names: list[str],
    layers: list[Tensor],
    stacked: list[bool],
    units: list[Tensor],
    density: float | Tensor,
    scope: str,
) -> list[Tensor]:
    """The masks (T, n) of layers that share the budgets of each task, or the one of a network."""
    if scope == "task":
        _check_same_tasks(names, layers, stacked)
        sizes = [unit.shape[1] for unit in units]
        return list(_topk(_joined(units, dim=1), density).split(sizes, dim=1))
    flat = [unit.flatten() for unit in units]
    sizes = [unit.shape[0] for unit in flat]
    return list(_topk(_joined(flat, dim=0).unsqueeze(0), density).squeeze(0).split(sizes))


def _check_density(density: float | Tensor) -> None:
    if not isinstance(density, Tensor):
        require_number(_OP, "density", density, least=0.0, most=1.0)
        return
    require_floating(_OP, "density", density)
    # Elsewhere the op itself objects, where it reads k.
    if density.is_cpu and is_readable(density) and density.numel() > 0:
        for value in density.aminmax():
            if not 0 <= value <= 1:
                refuse(_OP, "density", "from 0 to 1", f"{value.item():g}")


def _layers(scores: Scores) -> tuple[list[str], list[Tensor]]:
    """The tensors of ``scores``, and what messages call them."""
    if isinstance(scores, Tensor):
        return ["scores"], [scores]
    if isinstance(scores, Mapping):
        return [f"scores[{name!r}]" for name in scores], list(scores.values())
    if isinstance(scores, Sequence) and not isinstance(scores, str):
        return [f"scores[{i}]" for i in range(len(scores))], list(scores)
    refuse(_OP, "scores", "a tensor, or a sequence or mapping of tensors", typed(scores), TypeError)


def _like(scores: Any, masks: list[Tensor]) -> Any:
    """``masks`` in the structure of ``scores``."""
    if isinstance(scores, Tensor):
        return masks[0]
    if isinstance(scores, Mapping):
        return dict(zip(scores, masks, strict=True))
    return tuple(masks) if isinstance(scores, tuple) else masks


def _check_scores(name: str, layer: Tensor, granularity: str, tasks: bool | None) -> bool:
    """Checks one layer's scores; whether they lead with a task axis."""
    require_floating(_OP, name, layer)
    if tasks is None and layer.dim() == 3:
        raise ValueError(
            f"{_OP}: expected tasks=True or tasks=False for {name} of 3 dimensions, which may be "
            f"(T, O, I) or the weight (O, I, k) of a Conv1d, got shape {tuple(layer.shape)} alone"
        )
    leads = layer.dim() == 5 if tasks is None else tasks
    least, most = (1 if granularity == "weight" else 2) + leads, 5 + leads
    if not least <= layer.dim() <= most:
        axis = " with its task axis" if leads else ""
        expected = f"of {least} to {most} dimensions{axis} for granularity {granularity!r}"
        refuse(_OP, name, expected, f"shape {tuple(layer.shape)}")
    return leads


def _check_same_tasks(names: list[str], layers: list[Tensor], stacked: list[bool]) -> None:
    tasks = [
        layer.shape[0] if leads else None for layer, leads in zip(layers, stacked, strict=True)
    ]
    for name, layer, count in zip(names, layers, tasks, strict=True):
        if count != tasks[0]:
            shapes = f"shapes {tuple(layer.shape)} and {tuple(layers[0].shape)}"
            refuse(_OP, name, f"with the task axis of {names[0]} for scope 'task'", shapes)


def _units(layer: Tensor, granularity: str) -> Tensor:
    """The scores of a layer's units, one row a task: (T, O, I, ...) -> (T, n)."""
    if layer.dtype in (torch.float16, torch.bfloat16):
        layer = layer.float()
    if granularity == "kernel" and layer.dim() > 3:
        layer = layer.flatten(3).mean(3)
    elif granularity == "channel":
        layer = layer.flatten(2).mean(2)
    return layer.flatten(1)


def _from_units(mask: Tensor, layer: Tensor, granularity: str) -> Tensor:
    """The masks (T, n) of a layer's units -> the mask of the layer (T, O, I, ...)."""
    shape = layer.shape if granularity == "weight" else layer.shape[:3]
    if granularity == "channel":
        return mask.view(*shape[:-1], 1).expand(shape).to(layer.dtype)
    return mask.reshape(shape).to(layer.dtype)


def _joined(rows: list[Tensor], dim: int) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim)


def _topk(rows: Tensor, density: float | Tensor) -> Tensor:
    run = torch.ops.metasparse.topk_mask if _library.loaded() else reference.topk_mask
    return run(rows, _counts(density, rows))


def _counts(density: float | Tensor, rows: Tensor) -> Tensor:
    """k of each row of (S, n), int64."""
    count, n = rows.shape
    if not isinstance(density, Tensor):
        return torch.full((count,), round(density * n), dtype=torch.int64, device=rows.device)
    if density.numel() != 1 and density.shape != (count,):
        expected = f"of one value, or of one for each of {count} budgets"
        refuse(_OP, "density", expected, f"shape {tuple(density.shape)}")
    if density.is_meta and not rows.is_meta:
        refuse(_OP, "density", f"on {rows.device} like scores", "meta")
    exact = density.detach().to(rows.device, torch.float64) * n
    return exact.round().to(torch.int64).flatten().expand(count)


if _library.problem is None:
    register({"topk_mask": lambda scores, k: contiguous_like(scores)}, autocast=False)
