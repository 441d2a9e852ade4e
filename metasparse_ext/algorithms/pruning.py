"""Magnitude pruning: which weights are prunable, how many go, which stay, how masks move.

A signal of early detection compares two mappings from layer to mask (boolean, of any shape) and
returns a number from 0, the same, to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metasparse_ext.nn import MaskedConv2d
from metasparse_ext.ops import topk_mask

Kind = Literal["first", "conv", "head", "bias", "norm"]
Scope = Literal["global", "layer"]
Signal = Literal["inter", "intra", "hamming", "jaccard"]

# The names that the op has for them.
_SCOPES: dict[Scope, Literal["network", "layer"]] = {"global": "network", "layer": "layer"}

Masks = Mapping[str, Tensor]


def prunable(model: nn.Module, names: Sequence[str], skip: Collection[Kind]) -> list[str]:
    """The parameters among ``names`` that may be pruned.

    Their kinds: ``"first"`` the weight of the first masked convolution, ``"conv"`` of the others,
    ``"head"`` the weights of linear layers, ``"bias"`` the biases of both, ``"norm"`` all others.

    Args:
        model: The network.
        names: Parameters to choose from.
        skip: Kinds that stay whole.
    """
    kinds: dict[str, str] = {}
    for layer, module in model.named_modules():
        prefix = f"{layer}." if layer else ""
        if isinstance(module, MaskedConv2d):
            first = "first" not in kinds.values()
            kinds |= {f"{prefix}weight": "first" if first else "conv", f"{prefix}bias": "bias"}
        elif isinstance(module, nn.Linear):
            kinds |= {f"{prefix}weight": "head", f"{prefix}bias": "bias"}
    return [name for name in names if kinds.get(name, "norm") not in skip]


def schedule(density: float | None, rounds: int | None, rate: float) -> list[float]:
    """The fraction of weights left after each round.

    Args:
        density: Left after the last round, exactly.
        rounds: How many; each prunes the same part of what is left. Where None, every round prunes
            ``rate`` of what is left until ``density`` is reached, the last one only as much as
            that takes.
        rate: Pruned by a round, where the two others do not say it.
    """
    if density is None:
        return [(1 - rate) ** r for r in range(1, (rounds or 0) + 1)]
    if rounds is not None:
        return [density ** (r / rounds) for r in range(1, rounds + 1)]
    # Less a rounding error, so that 0.64 at a rate of 0.2 takes two rounds.
    count = max(1, math.ceil(math.log(density) / math.log(1 - rate) - 1e-9))
    return [max((1 - rate) ** r, density) for r in range(1, count)] + [density]


def largest(
    weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], density: float, scope: Scope
) -> dict[str, Tensor]:
    """The masks of the ``round(density * n)`` largest of n weights; what was pruned stays pruned.

    Args:
        weights: By name.
        kept: Zeros and ones in the shapes of the weights.
        density: Fraction left, no more than ``kept`` has.
        scope: ``"global"`` ranks all weights together, ``"layer"`` each layer's by themselves.
    """
    scores = {
        name: torch.where(kept[name] != 0, weight.detach().abs(), -1.0)
        for name, weight in weights.items()
    }
    return dict(topk_mask(scores, density, scope=_SCOPES[scope], tasks=False))


def inter_layer(one: Masks, two: Masks) -> float:
    """How the budget moves between layers: the part of what is kept that changes its layer.

    That is half the L1 distance of the layers' shares; both masks must keep equally many.
    """
    moved = sum(abs(int(one[name].sum()) - int(two[name].sum())) for name in one) / 2
    return moved / max(1, sum(int(mask.sum()) for mask in one.values()))


def intra_layer(one: Masks, two: Masks) -> float:
    """How masks move within layers: the largest part of a layer's entries that differ."""
    return max(float((one[name] != two[name]).double().mean()) for name in one)


def hamming(one: Masks, two: Masks) -> float:
    """The fraction of all entries that differ: the distance of Early-Bird tickets."""
    different = sum(int((one[name] != two[name]).sum()) for name in one)
    return different / sum(mask.numel() for mask in one.values())


def jaccard(one: Masks, two: Masks) -> float:
    """The largest over the layers of 1 - (kept in both) / (kept in either)."""
    return max(_jaccard(one[name], two[name]) for name in one)


def _jaccard(one: Tensor, two: Tensor) -> float:
    either = int((one | two).sum())
    return 1 - int((one & two).sum()) / either if either else 0.0


SIGNALS: dict[Signal, Callable[[Masks, Masks], float]] = {
    "inter": inter_layer,
    "intra": intra_layer,
    "hamming": hamming,
    "jaccard": jaccard,
}


def distances(signals: Sequence[Signal], history: Sequence[Masks]) -> dict[Signal, float]:
    """The largest distance of the newest masks, the last, from the older ones, by signal."""
    *older, newest = history
    return {name: max(SIGNALS[name](newest, masks) for masks in older) for name in signals}
