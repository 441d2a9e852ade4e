"""What the kernels are told when they are compiled: the sizes of a convolution, and their cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import accumulator, is_wide


class Tile(NamedTuple):
    """How one kernel is cut: out channels x pixels x reduction, and what the compiler is told."""

    rows: int = 64
    pixels: int = 64
    reduction: int = 32
    skip: bool = False
    warps: int = 4
    stages: int = 3


DEFAULT_TILE = Tile()
#: Two reductions into one accumulator need more registers: with more, sm_80 spills some.
PAIR_TILE = Tile(pixels=32, warps=8)


@dataclass(frozen=True)
class Sizes:
    """Of one convolution: channels and image in, channels out, kernel, stride and padding."""

    I: int
    H: int
    W: int
    O: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int

    @classmethod
    def of(
        cls,
        channels: tuple[int, int],
        image: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
    ) -> Sizes:
        """From (in, out) channels and pairs of (vertical, horizontal)."""
        inputs, outputs = channels
        return cls(inputs, *image, outputs, *kernel, *stride, *padding)

    @property
    def HO(self) -> int:
        """Rows of the output."""
        return (self.H + 2 * self.PH - self.KH) // self.SH + 1

    @property
    def WO(self) -> int:
        """Columns of the output."""
        return (self.W + 2 * self.PW - self.KW) // self.SW + 1

    @property
    def TAPS(self) -> int:
        """Numbers of one kernel."""
        return self.KH * self.KW

    @property
    def PHASES(self) -> int:
        """Parities of a pixel of the input, to each of which other taps reach."""
        return self.SH * self.SW

    @property
    def HQ(self) -> int:
        """Rows of the input of one parity, at most."""
        return -(-self.H // self.SH)

    @property
    def WQ(self) -> int:
        """Columns of the input of one parity, at most."""
        return -(-self.W // self.SW)


@dataclass(frozen=True)
class Cut:
    """How a kernel is cut, and how it computes.

    Attributes:
        rows, pixels, reduction: Of a tile.
        skip: Whether only the listed blocks of a masked reduction are visited.
        wide: Whether indices inside a task's part of a tensor need 64 bits.
        sums: What products are added up in.
        precision: Of the products of float32 numbers.
    """

    rows: int
    pixels: int
    reduction: int
    skip: bool
    wide: bool
    sums: tl.dtype
    precision: str

    @classmethod
    def of(cls, tile: Tile, precision: str, *tensors: Tensor) -> Cut:
        """For a kernel on these tensors, all of one dtype."""
        dtype = tensors[0].dtype
        precision = precision if dtype == torch.float32 else "ieee"
        return cls(*tile[:4], is_wide(*tensors), accumulator(dtype)[1], precision)
