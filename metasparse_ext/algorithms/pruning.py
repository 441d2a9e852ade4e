"""Magnitude pruning of a network's weights: which are prunable, how many go, which stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from metasparse_ext.nn import MaskedConv2d
from metasparse_ext.ops import topk_mask

KINDS = ("first", "conv", "head", "bias", "norm")
SCOPES = {"global": "network", "layer": "layer"}


def prunable(model: nn.Module, names: Sequence[str], skip: Sequence[str]) -> list[str]:
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
        return [(1 - rate) ** r for r in range(1, rounds + 1)]
    if rounds is not None:
        return [density ** (r / rounds) for r in range(1, rounds + 1)]
    # Less a rounding error, so that 0.64 at a rate of 0.2 takes two rounds.
    count = max(1, math.ceil(math.log(density) / math.log(1 - rate) - 1e-9))
    return [max((1 - rate) ** r, density) for r in range(1, count)] + [density]


def largest(
    weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], density: float, scope: str
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
    return topk_mask(scores, density, scope=SCOPES[scope], tasks=False)
