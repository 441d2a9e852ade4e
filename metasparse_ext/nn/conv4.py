"""Conv-4, the backbone of few-shot learning."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext._arguments import (
    refuse,
    require_choice,
    require_count,
    require_flag,
    require_pair,
    require_place,
    require_size,
)
from metasparse_ext.nn.backbone import Backbone, HeadInput, Place, check_options
from metasparse_ext.nn.film import FiLM
from metasparse_ext.nn.linear import Linear
from metasparse_ext.nn.masked_conv import MaskedConv2d
from metasparse_ext.nn.norm import NormActPool, Order

# Each one halves the map.
_MOST_BLOCKS = 32


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
        require_size("ConvBlock", "in_channels", in_channels)
        require_size("ConvBlock", "out_channels", out_channels)
        _check_block("ConvBlock", strided, order, bias)
        require_place("ConvBlock", device, dtype)
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
            raise ValueError(
                "ConvBlock: expected order to be one whose ReLU follows the norm, got "
                "'act_pool_norm', which no modulation fits"
            )
        require_size("ConvBlock", "context", context)
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

    task_aware = True

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
        check_options("Conv4", in_channels, ways, head, device, dtype)
        size = require_pair("Conv4", "image_size", image_size, least=1)
        require_size("Conv4", "width", width)
        require_count("Conv4", "blocks", blocks, least=1, most=_MOST_BLOCKS)
        _check_block("Conv4", strided, order, bias)
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
        expected = f"not too small for {blocks} blocks of 2x2 pools"
        refuse("Conv4", "image_size", expected, str(size))
    return height * width


def _check_block(owner: str, strided: bool, order: str, bias: bool) -> None:
    require_flag(owner, "strided", strided)
    require_choice(owner, "order", order, Order)
    require_flag(owner, "bias", bias)
