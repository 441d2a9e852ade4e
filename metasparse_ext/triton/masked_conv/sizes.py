"""What the kernels are told when they are compiled: the sizes of a convolution, and their tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from metasparse_ext.triton.operands import accumulator

#: Below this many numbers of one output channel's kernels, one step reduces over all of them.
FLAT = 64


class Tile(NamedTuple):
    """How a kernel is cut, and what the compiler is told.

    Attributes:
        rows: Output channels of a program (input channels in the input gradient).
        pixels: Pixels of a program; of a step in the weight gradient.
        reduction: Channels of one step of the reduction; of a program in the weight gradient.
        warps, stages: Warps of a program, and steps of which operands are on their way.
    """

    rows: int = 64
    pixels: int = 64
    reduction: int = 32
    warps: int = 4
    stages: int = 2


DEFAULT_TILE = Tile()
#: Two reductions into one accumulator: with more rows, products of float32's accuracy spill.
PAIR_TILE = Tile(rows=32)


@dataclass(frozen=True)
class Sizes:
    """Of one convolution, its tile and its arithmetic.

    A convolution reads ``C`` channels of a source image (H, W) and makes ``R`` rows (channels) of
    a result image. The input gradient is one too, ``transposed``: its source is the gradient, and
    its result falls into the parities of a pixel, ``PHASES``, to each of which other taps reach.

    Attributes:
        R, C: Channels of the result and of the source.
        H, W: Source image.
        HR, WR: Result image.
        KH, KW, SH, SW, PH, PW: Kernel, stride and padding of the convolution.
        transposed: Whether this is an input gradient.
        rows, pixels, channels: Of a tile.
        flat: Whether one step reduces over all (channel, tap) pairs.
        sums: What products are added up in.
        precision: Of the products of float32 numbers.
    """

    R: int
    C: int
    H: int
    W: int
    HR: int
    WR: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int
    transposed: bool
    rows: int
    pixels: int
    channels: int
    flat: bool
    sums: tl.dtype
    precision: str

    @classmethod
    def of(
        cls,
        channels: tuple[int, int],
        images: tuple[Sequence[int], Sequence[int]],
        window: Sequence[Sequence[int]],
        tile: Tile,
        dtype: torch.dtype,
        precision: str,
        *,
        transposed: bool = False,
    ) -> Sizes:
        """From (result, source) channels and images; window is kernel, stride and padding."""
        rows, sources = channels
        kernel, stride, padding = window
        flat = not transposed and sources * kernel[0] * kernel[1] <= FLAT
        # Wide kernels have as many operands on their way at once as they have columns.
        most = tile.reduction if kernel[1] <= 3 else 16
        width = sources * kernel[0] * kernel[1] if flat else sources
        step = max(16, triton.next_power_of_2(width))
        return cls(
            rows, sources, *images[1], *images[0], *kernel, *stride, *padding, transposed,
            tile.rows, tile.pixels, step if flat else min(most, step), flat,
            accumulator(dtype)[1], precision if dtype == torch.float32 else "ieee",
        )  # fmt: skip

    @property
    def TAPS(self) -> int:
        """Numbers of one kernel."""
        return self.KH * self.KW

    @property
    def STEPS(self) -> int:
        """Blocks of channels of the source."""
        return 1 if self.flat else -(-self.C // self.channels)

    @property
    def BLOCKS(self) -> int:
        """Blocks of packed weights of one block of rows: taps x STEPS."""
        return 1 if self.flat else self.TAPS * self.STEPS

    @property
    def SDH(self) -> int:
        """Rows of the result from one pixel of a phase to the next; and columns: SDW."""
        return self.SH if self.transposed else 1

    @property
    def SDW(self) -> int:
        """See SDH."""
        return self.SW if self.transposed else 1

    @property
    def PHASES(self) -> int:
        """Parities of a pixel of the result."""
        return self.SDH * self.SDW

    @property
    def HQ(self) -> int:
        """Rows of the result of one phase, at most."""
        return -(-self.HR // self.SDH)

    @property
    def WQ(self) -> int:
        """Columns of the result of one phase, at most."""
        return -(-self.WR // self.SDW)

    @property
    def ROUNDED(self) -> bool:
        """Whether products are TF32, to which their inputs have to be rounded."""
        return self.precision == "tf32"


def shared_bytes(op: str, args: tuple, tile: Tile) -> int:
    """Shared memory of a program of an op of the family, at most.

    Every stage holds the operands of one step, which are those of a row of taps.
    """
    size, channels = args[0].element_size(), args[1].shape[2]
    if op.endswith("input_grad") or op.endswith("input_grad_pair"):
        channels = args[0].shape[2]
    step = min(tile.reduction, max(16, triton.next_power_of_2(channels)))
    if "weight_grad" in op or "mask_grad" in op:
        rows = tile.rows * tile.pixels
        return (tile.stages * (3 * step * tile.pixels + rows) + rows) * size
    columns = args[1].shape[4]
    if channels * args[1].shape[3] * columns <= FLAT:
        step, columns = FLAT, 1
    elif columns > 3:
        step = min(step, 16)
    return tile.stages * columns * step * (tile.rows + tile.pixels) * size
