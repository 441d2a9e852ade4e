"""Conv-4, the backbone of few-shot learning."""

from itertools import pairwise
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext.nn.backbone import Backbone, HeadInput, Place, height_and_width
from metasparse_ext.nn.film import FiLM
from metasparse_ext.nn.linear import Linear
from metasparse_ext.nn.masked_conv import MaskedConv2d
from metasparse_ext.nn.norm import NormActPool, Order


class ConvBlock(nn.Module):
    """A 3x3 masked convolution, then batch norm, ReLU and possibly a 2x2 max-pool as one op.

    Args:
        in_channels, out_channels: I and O.
        strided: Halve the map by the stride of the convolution; else by the max-pool.
        order: Of norm, activation and pool, as in :class:`~metasparse_ext.nn.NormActPool`.
        bias: Of the convolution.
        device, dtype: Of the parameters.
    """

    task_aware = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strided: bool,
        order: Order,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: Place = {"device": device, "dtype": dtype}
        stride, pool = (2, 0) if strided else (1, 2)
        self.conv = MaskedConv2d(in_channels, out_channels, 3, stride, 1, bias=bias, **place)
        self.conv.bias_matters = order == "act_pool_norm"  # else the norm takes it away
        self.norm = NormActPool(out_channels, pool=pool, order=order, **place)
        self.film: FiLM | None = None

    def modulate(self, context: int) -> None:
        """Puts a :class:`~metasparse_ext.nn.FiLM` of so many context numbers before the ReLU.

        Raises:
            ValueError: if the block's ReLU comes before its norm.
        """
        if self.norm.order == "act_pool_norm":
            raise ValueError("ConvBlock: no modulation fits order 'act_pool_norm'")
        weight = self.conv.weight
        self.film = FiLM(weight.shape[0], context, device=weight.device, dtype=weight.dtype)
        self.norm.activation = "none"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.film is None else F.relu(self.film(x))


class Conv4(Backbone):
    """Four blocks of convolution, batch norm per task and ReLU, each halving the map, and a head.

    Two families of the literature differ in how a block halves the map. Strided (MAML and iMAML on
    Omniglot, MetaDOCK): 28, 14, 7, 4, 2 or 32, 16, 8, 4, 2 or 84, 42, 21, 11, 6 pixels. Pooled
    (MAML, Reptile, CAVIA on mini-ImageNet): 28, 14, 7, 3, 1 or 84, 42, 21, 10, 5 pixels. The
    zero-pad to 8 that iMAML's code puts after the second strided block at 28 pixels coincides with
    the padding of the third convolution, so it changes nothing and is not there.

    Args:
        in_channels: C of the images.
        image_size: Height and width of the images, or (height, width).
        width: Channels of every block.
        ways: Classes of a task, the outputs of the head.
        blocks: How many blocks.
        strided: Halve by stride-2 convolutions; else by 2x2 max-pools.
        order: Of norm, activation and pool in a block, as in
            :class:`~metasparse_ext.nn.NormActPool`.
        bias: Of the convolutions.
        head: "flatten" feeds the head the whole last map, "mean" its spatial mean.
        device, dtype: Of the parameters.

    Shapes: images (N, C, H, W) to logits (N, ways), and (T, N, C, H, W) to (T, N, ways).

    Example:
        >>> net = Conv4(in_channels=1, image_size=28, width=64, ways=5)
        >>> net(torch.randn(10, 1, 28, 28)).shape, net(torch.randn(4, 10, 1, 28, 28)).shape
        (torch.Size([10, 5]), torch.Size([4, 10, 5]))

    Raises:
        ValueError: if the images are too small for so many blocks, there is no block or no class,
            or an option is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int | tuple[int, int],
        width: int = 64,
        ways: int = 5,
        *,
        blocks: int = 4,
        strided: bool = True,
        order: Order = "norm_act_pool",
        bias: bool = True,
        head: HeadInput = "flatten",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head not in get_args(HeadInput):
            raise ValueError(f"Conv4: head must be 'flatten' or 'mean', got {head!r}")
        for name, count in {"blocks": blocks, "ways": ways}.items():
            if count < 1:
                raise ValueError(f"Conv4: {name} must be at least 1, got {count}")
        size = height_and_width(image_size)
        place: Place = {"device": device, "dtype": dtype}
        channels = [in_channels] + [width] * blocks
        self.image_shape, self.head_input = (in_channels, *size), head
        self.blocks = nn.Sequential(
            *(
                ConvBlock(i, o, strided=strided, order=order, bias=bias, **place)
                for i, o in pairwise(channels)
            )
        )
        positions = 1 if head == "mean" else _positions(size, blocks, strided)
        self.head = Linear(channels[-1] * positions, ways, **place)


def _positions(size: tuple[int, int], blocks: int, strided: bool) -> int:
    """Height times width of the last map."""
    height, width = size
    for _ in range(blocks):
        height, width = ((n + 1) // 2 if strided else n // 2 for n in (height, width))
    if height * width == 0:
        raise ValueError(f"Conv4: images of {size} are too small for {blocks} blocks of 2x2 pools")
    return height * width
