"""The gradient of the reference masks."""

# Functions have arguments of their own, which their base class cannot name.
# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, mask: Tensor) -> Tensor:
        return mask.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None

    @staticmethod
    def jvp(ctx: Any, scores_tangent: Tensor, mask_tangent: None) -> Tensor:
        return scores_tangent.clone()


def straight_through(scores: Tensor, mask: Tensor) -> Tensor:
    """``mask``, with the derivative of ``scores``: d mask / d scores is the identity."""
    return _StraightThrough.apply(scores, mask)
