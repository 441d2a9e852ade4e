"""Minibatches in an order that a counter decides: the same on every device and after a resume."""

from __future__ import annotations

import torch
from torch import Tensor


def minibatches(count: int, size: int, steps: int, seed: Tensor) -> Tensor:
    """Cuts ``count`` samples, shuffled anew for every pass through them, into minibatches.

    A minibatch may begin at the end of one pass and end in the next.

    Args:
        count: How many samples there are.
        size: Samples in a minibatch.
        steps: How many minibatches.
        seed: () int64. The order is a function of its value, which is not read by the host.

    Returns:
        (steps, size) int64 indices, on the seed's device.
    """
    passes = -(-steps * size // count)
    positions = torch.arange(passes * count, device=seed.device)
    keys = _mixed(positions + seed * _signed(0x9E3779B97F4A7C15))
    order = keys.view(passes, count).argsort(-1)
    return order.flatten()[: steps * size].view(steps, size)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: integers that look random (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers: torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
