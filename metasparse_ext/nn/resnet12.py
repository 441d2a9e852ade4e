"""ResNet-12, the larger backbone of few-shot learning."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require,
    require_choice,
    require_pair,
    require_place,
    require_size,
)
from metasparse_ext.nn.backbone import Backbone, HeadInput, Place, check_options
from metasparse_ext.nn.film import FiLM
from metasparse_ext.nn.linear import Linear
from metasparse_ext.nn.masked_conv import MaskedConv2d
from metasparse_ext.nn.norm import Activation as NormActivation
from metasparse_ext.nn.norm import BatchNorm2d, NormActPool

Activation = Literal["leaky_relu", "relu"]

# The published widths 64, 160, 320, 640 as multiples of the first.
_PROPORTIONS = (1.0, 2.5, 5.0, 10.0)
_SLOPE = 0.1


class ResBlock(nn.Module):
    """Three 3x3 convolutions with a shortcut, then a 2x2 max-pool and the activation.

    The pool comes before the activation, which is monotone, so that a quarter of the map is left
    to activate; the result is that of the published order.

    Args:
        in_channels, out_channels: I and O.
        activation: "leaky_relu" of slope 0.1, or "relu".
        device, dtype: Of the parameters.

    Raises:
        ValueError: if the activation is unknown.
    """

    task_aware = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        activation: Activation,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_size("ResBlock", "in_channels", in_channels)
        require_size("ResBlock", "out_channels", out_channels)
        require_choice("ResBlock", "activation", activation, Activation)
        require_place("ResBlock", device, dtype)
        place: Place = {"device": device, "dtype": dtype}
        relu = activation == "relu"
        # Inside the block a ReLU is one op with its norm.
        fused: tuple[NormActivation, ...] = ("relu" if relu else "none",) * 2
        self.inner = nn.Identity() if relu else nn.LeakyReLU(_SLOPE)
        self.outer = nn.ReLU() if relu else nn.LeakyReLU(_SLOPE)
        channels = [in_channels] + [out_channels] * 3
        self.convs = nn.ModuleList(
            MaskedConv2d(i, o, 3, padding=1, bias=False, **place) for i, o in pairwise(channels)
        )
        self.norms = nn.ModuleList(
            NormActPool(out_channels, activation=kind, **place) for kind in (*fused, "none")
        )
        self.shortcut = MaskedConv2d(in_channels, out_channels, 1, bias=False, **place)
        self.shortcut_norm = BatchNorm2d(out_channels, **place)
        self.film: FiLM | None = None

    def modulate(self, context: int) -> None:
        """Puts a :class:`~metasparse_ext.nn.FiLM` of so many context numbers before the last ReLU.

        It follows the pool, as in :class:`~metasparse_ext.nn.ConvBlock`.
        """
        require_size("ResBlock", "context", context)
        weight = self.shortcut.weight
        self.film = FiLM(weight.shape[0], context, device=weight.device, dtype=weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.norms[0](self.convs[0](x)))
        y = self.inner(self.norms[1](self.convs[1](y)))
        y = self.norms[2](self.convs[2](y)) + self.shortcut_norm(self.shortcut(x))
        y = max_pool(y)
        return self.outer(y if self.film is None else self.film(y))


class ResNet12(Backbone):
    """Four residual blocks of three convolutions, each halving the map, and a head.

    As in MetaOptNet: widths 64, 160, 320, 640, convolutions without bias that start from Kaiming's
    normal distribution (fan out), leaky ReLU, and a head on the whole last map: 84, 42, 21, 10, 5
    pixels make 16000 features. Batch norm takes the statistics of each task's batch, always.

    Its drop-block is left out. A random mask would have to be one and the same in a step's gradient
    and in the Hessian products taken of that step afterwards, another in the next step, and all of
    them again after a resume or in a captured graph; no learner here draws numbers in its forward.

    Args:
        in_channels: C of the images.
        image_size: Height and width of the images, or (height, width); 16 pixels at least.
        width: Channels of the first block, and 2.5, 5 and 10 times as many of the others; or the
            channels of all four.
        ways: Classes of a task, the outputs of the head.
        activation: "leaky_relu" of slope 0.1, as published, or "relu", which saves a pass.
        head: "flatten" feeds the head the whole last map, "mean" its spatial mean.
        device, dtype: Of the parameters.

    Shapes: images (N, C, H, W) to logits (N, ways), and (T, N, C, H, W) to (T, N, ways).

    Example:
        >>> net = ResNet12(in_channels=3, image_size=32, width=8, ways=5)
        >>> net(torch.randn(4, 10, 3, 32, 32)).shape
        torch.Size([4, 10, 5])

    Source: Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex
        Optimization", CVPR 2019, and its public code.

    Raises:
        ValueError: if the images are too small, or an option is unknown.
    """

    task_aware = True

    def __init__(
        self,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: int | Sequence[int] = 64,
        ways: int = 5,
        *,
        activation: Activation = "leaky_relu",
        head: HeadInput = "flatten",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_options("ResNet12", in_channels, ways, head, device, dtype)
        require_choice("ResNet12", "activation", activation, Activation)
        widths = _widths(width)
        size = require_pair("ResNet12", "image_size", image_size, least=2 ** len(widths))
        last = [side // 2 ** len(widths) for side in size]
        place: Place = {"device": device, "dtype": dtype}
        self.image_shape, self.head_input = (in_channels, *size), head
        self.blocks = nn.Sequential(
            *(
                ResBlock(i, o, activation=activation, **place)
                for i, o in pairwise([in_channels, *widths])
            )
        )
        positions = 1 if head == "mean" else last[0] * last[1]
        self.head = Linear(widths[-1] * positions, ways, **place)
        self.reset_convolutions()

    def reset_convolutions(self) -> None:
        for module in self.blocks.modules():
            if isinstance(module, MaskedConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")


def _widths(width: int | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(width, Sequence):
        require_size("ResNet12", "width", width)
        return tuple(round(width * factor) for factor in _PROPORTIONS)
    require(len(width) == len(_PROPORTIONS), "ResNet12", "width", "one integer or four", width)
    for channels in width:
        require_size("ResNet12", "width", channels)
    return tuple(width)


def max_pool(x: Tensor) -> Tensor:
    """2x2 with stride 2, whatever axes come before (C, H, W)."""
    return F.max_pool2d(x.flatten(0, -4), 2).unflatten(0, x.shape[:-3])
