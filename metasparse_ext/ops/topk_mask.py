"""A mask of exactly the k best scores, per layer, per task or over a whole network."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext.ops._register import register_vmap

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
) -> Scores:
    """The mask that keeps a given fraction of a network: its largest scores.

    Of the n units that share a budget exactly ``k = round(density * n)`` get a 1 (halves round to
    even, as Python's ``round``), the others a 0. Units with equal scores rank by index, lowest
    first; -0.0 and +0.0 are equal. Larger is better: magnitude pruning passes ``weight.abs()``.

    ``granularity`` says what a unit is, ``scope`` which units share a budget:

    - ``"weight"``: an entry of ``scores``. The mask has the shape of the scores.
    - ``"kernel"``: a kernel (o, i), whose score is the mean of its kh * kw. The mask is (O, I) or
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
        scores: A tensor, or a sequence or mapping of tensors, one a layer: (O, I, kh, kw) or, with
            one score a kernel, (O, I); with a leading task axis (T, O, I, kh, kw) or (T, O, I). A
            vector (n,) is a layer of n weights. float32 or float64; lower precisions are ranked as
            float32.
        density: Fraction kept, from 0 to 1: a number, a tensor of one value, or a tensor (T,) of
            one value a task. A tensor is only read: no gradient reaches it.
        granularity: What is kept or pruned as one.
        scope: What shares a budget.

    Returns:
        Zeros and ones in the dtype of the scores and the structure of ``scores``.

    Raises:
        ValueError: A shape, density or option does not fit, or scores hold NaN, which has no rank.
            (On a GPU, where an error would cost a synchronisation, and in the plain PyTorch
            reference the mask of units that share a budget with NaN is NaN instead.)
        TypeError: ``scores`` or ``density`` is of another type or dtype.
    """
    _check_option("granularity", granularity, _GRANULARITIES)
    _check_option("scope", scope, _SCOPES)
    names, layers = _layers(scores)
    for name, layer in zip(names, layers, strict=True):
        _check_scores(name, layer, granularity)
    if not layers:
        return _like(scores, [])
    units = [_units(layer, granularity) for layer in layers]
    if scope == "layer":
        masks = [_topk(unit, density) for unit in units]
    elif scope == "task":
        _check_same_tasks(names, layers)
        sizes = [unit.shape[1] for unit in units]
        masks = _topk(_joined(units, dim=1), density).split(sizes, dim=1)
    else:
        flat = [unit.flatten() for unit in units]
        sizes = [unit.shape[0] for unit in flat]
        masks = _topk(_joined(flat, dim=0).unsqueeze(0), density).squeeze(0).split(sizes)
    return _like(
        scores,
        [_from_units(m, layer, granularity) for m, layer in zip(masks, layers, strict=True)],
    )


def _check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{_OP}: expected {name} to be one of {', '.join(options)}, got {value!r}")


def _layers(scores: Scores) -> tuple[list[str], list[Tensor]]:
    """The tensors of ``scores``, and what messages call them."""
    if isinstance(scores, Tensor):
        return ["scores"], [scores]
    if isinstance(scores, Mapping):
        return [f"scores[{name!r}]" for name in scores], list(scores.values())
    if isinstance(scores, Sequence) and not isinstance(scores, str):
        return [f"scores[{i}]" for i in range(len(scores))], list(scores)
    raise TypeError(
        f"{_OP}: expected scores to be a tensor, or a sequence or mapping of tensors, "
        f"got {type(scores).__name__}"
    )


def _like(scores: Scores, masks: list[Tensor]) -> Scores:
    """``masks`` in the structure of ``scores``."""
    if isinstance(scores, Tensor):
        return masks[0]
    if isinstance(scores, Mapping):
        return dict(zip(scores, masks, strict=True))
    return tuple(masks) if isinstance(scores, tuple) else masks


def _has_tasks(layer: Tensor) -> bool:
    return layer.dim() in (3, 5)


def _check_scores(name: str, layer: Tensor, granularity: str) -> None:
    if not isinstance(layer, Tensor):
        raise TypeError(f"{_OP}: expected {name} to be a tensor, got {type(layer).__name__}")
    if not layer.is_floating_point():
        raise TypeError(f"{_OP}: expected {name} of a floating dtype, got {layer.dtype}")
    least = 1 if granularity == "weight" else 2
    if not least <= layer.dim() <= 5:
        raise ValueError(
            f"{_OP}: expected {name} of {least} to 5 dimensions for granularity {granularity!r}, "
            f"got shape {tuple(layer.shape)}"
        )


def _check_same_tasks(names: list[str], layers: list[Tensor]) -> None:
    tasks = [layer.shape[0] if _has_tasks(layer) else None for layer in layers]
    for name, layer, count in zip(names, layers, tasks, strict=True):
        if count != tasks[0]:
            raise ValueError(
                f"{_OP}: expected {name} to have the task axis of {names[0]} for scope 'task', got "
                f"shapes {tuple(layer.shape)} and {tuple(layers[0].shape)}"
            )


def _units(layer: Tensor, granularity: str) -> Tensor:
    """The scores of a layer's units, one row a task: (T, n), T = 1 without a task axis."""
    if layer.dtype in (torch.float16, torch.bfloat16):
        layer = layer.float()
    if not _has_tasks(layer):
        layer = layer.unsqueeze(0)
    if granularity == "kernel" and layer.dim() == 5:
        layer = layer.mean((3, 4))
    elif granularity == "channel":
        layer = layer.flatten(2).mean(2)
    return layer.flatten(1)


def _from_units(mask: Tensor, layer: Tensor, granularity: str) -> Tensor:
    """The masks (T, n) of a layer's units -> the mask of the layer."""
    shape = layer.shape
    if granularity != "weight":
        shape = shape[: 3 if _has_tasks(layer) else 2]
    if granularity == "channel":
        return mask.view(*shape[:-1], 1).expand(shape).to(layer.dtype)
    return mask.reshape(shape).to(layer.dtype)


def _joined(rows: Sequence[Tensor], dim: int) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim)


def _topk(rows: Tensor, density: float | Tensor) -> Tensor:
    run = torch.ops.metasparse.topk_mask if _library.loaded() else reference.topk_mask
    return run(rows, _counts(density, rows))


def _counts(density: float | Tensor, rows: Tensor) -> Tensor:
    """k of each row of (S, n), int64."""
    count, n = rows.shape
    if not isinstance(density, Tensor):
        if not isinstance(density, (int, float)):
            raise TypeError(
                f"{_OP}: expected density to be a number or a tensor, got {type(density).__name__}"
            )
        if not 0 <= density <= 1:
            raise ValueError(f"{_OP}: expected density from 0 to 1, got {density}")
        return torch.full((count,), round(density * n), dtype=torch.int64, device=rows.device)
    if not density.is_floating_point():
        raise TypeError(f"{_OP}: expected density of a floating dtype, got {density.dtype}")
    if density.numel() != 1 and density.shape != (count,):
        raise ValueError(
            f"{_OP}: expected density to have one value, or one for each of {count} budgets, "
            f"got shape {tuple(density.shape)}"
        )
    # to out-of-range values the op itself objects, where k is read
    exact = density.detach().to(rows.device, torch.float64) * n
    return exact.round().to(torch.int64).flatten().expand(count)


def _fake(scores, k):
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


if _library.problem is None:
    torch.library.register_fake("metasparse::topk_mask", _fake)
    register_vmap("topk_mask", torch.ops.metasparse.topk_mask)
