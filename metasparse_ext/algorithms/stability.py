"""How far two sets of masks are apart: the named signals of early detection.

A signal compares two mappings from layer to mask (boolean, of any shape) and returns a number from
0, the same, to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

Masks = Mapping[str, Tensor]


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


SIGNALS: dict[str, Callable[[Masks, Masks], float]] = {
    "inter": inter_layer,
    "intra": intra_layer,
    "hamming": hamming,
    "jaccard": jaccard,
}


def distances(signals: tuple[str, ...], history: list[Masks]) -> dict[str, float]:
    """The largest distance of the newest masks, the last, from the older ones, by signal."""
    *older, newest = history
    return {name: max(SIGNALS[name](newest, masks) for masks in older) for name in signals}
