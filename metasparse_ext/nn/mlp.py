"""A plain network from numbers to numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require,
    require_floating,
    require_place,
    require_shape,
    require_size,
    require_type,
)
from metasparse_ext.nn.linear import Linear


class MLP(nn.Module):
    """Linear layers with ReLU between them, such as the regressor of MAML's paper.

    Args:
        shape: Of one sample; a number is the length of a vector.
        outputs: Numbers that are predicted of it, or logits of so many classes.
        hidden: Widths of the layers between.
        device, dtype: Of the parameters.

    Shapes: x (N, *shape) to (N, outputs), and (T, N, *shape) to (T, N, outputs).

    Raises:
        TypeError, ValueError: if a size is none, or x has another shape.
    """

    task_aware = True

    def __init__(
        self,
        shape: int | Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (40, 40),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes: tuple[Any, ...] = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        require_type("MLP", "hidden", hidden, (tuple, list), "widths of layers")
        for name, given in {"shape": sizes, "outputs": (outputs,), "hidden": hidden}.items():
            for size in given:
                require_size("MLP", name, size)
        require(bool(sizes), "MLP", "shape", "of at least one axis", shape)
        require_place("MLP", device, dtype)
        self.shape = sizes
        layers: list[nn.Module] = []
        widths = (math.prod(sizes), *hidden)
        for size, width in pairwise(widths):
            layers += [Linear(size, width, device=device, dtype=dtype), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = Linear(widths[-1], outputs, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        require_floating("MLP", "x", x)
        require_shape("MLP", "x", x, ("N", *self.shape), ("T", "N", *self.shape))
        return self.head(self.layers(x.flatten(-len(self.shape))))
