"""What the kernels of the block are told when they are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import accumulator, operands


@dataclass(frozen=True)
class Plan:
    """The sizes of a block, what it consists of, and how its kernels compute.

    Attributes:
        C, H, W: Channels, and the image that comes in.
        gated: Whether there is a gate: a ReLU, or a pool.
        pool: Whether 2x2 windows are pooled.
        norm_first: Whether the norm comes before the gate.
        block: Elements a program has in hand at a time.
        sums: What it computes in.
    """

    C: int
    H: int
    W: int
    gated: bool
    pool: bool
    norm_first: bool
    block: int
    sums: tl.dtype

    @classmethod
    def of(cls, x: Tensor, gate: Tensor, pool: bool, norm_first: bool, block: int) -> Plan:
        """For x (T, N, C, H, W) and its gate, of five axes if there is one."""
        return cls(*x.shape[2:], gate.dim() == 5, pool, norm_first, block, accumulator(x.dtype)[1])

    @property
    def HO(self) -> int:
        """Rows of the image that goes out."""
        return self.H // 2 if self.pool else self.H

    @property
    def WO(self) -> int:
        """Columns of the image that goes out."""
        return self.W // 2 if self.pool else self.W

    @property
    def INPUT(self) -> int:
        """Elements of one sample that come in."""
        return self.H * self.W

    @property
    def OUTPUT(self) -> int:
        """Elements of one sample that go out."""
        return self.HO * self.WO


class Point(NamedTuple):
    """Where a derivative is taken: the last arguments of every derivative of the block.

    Attributes:
        x: (T, N, C, H, W), as the block took it.
        weight: (T, C) or None, likewise.
        mean, rstd, gate: As the block returned them.
        eps: Unused: rstd holds it.
        pool, norm_first: What the block consists of.
    """

    x: Tensor
    weight: Tensor | None
    mean: Tensor
    rstd: Tensor
    gate: Tensor
    eps: float
    pool: bool
    norm_first: bool


def launch_at(
    kernel,
    point: Point,
    operand_tensors: Sequence[Tensor | None],
    results: Sequence[Tensor],
    flags: Sequence[bool],
    block: int,
    warps: int,
) -> None:
    """Runs the kernel of a derivative, which reads some operands and the point, in this order."""
    x, weight, mean, rstd, gate, _, pool, norm_first = point
    pointers, strides = operands(*operand_tensors, x, weight, mean, rstd, gate)
    kernel[grid(x)](
        *pointers, *results, *strides, x.shape[1], Plan.of(x, gate, pool, norm_first, block),
        *flags, weight is not None, num_warps=warps,
    )  # fmt: skip


def grid(x: Tensor) -> tuple[int, int]:
    """One program per (channel, task)."""
    return x.shape[2], x.shape[0]


def out_shape(x: Tensor, pool: bool) -> tuple[int, ...]:
    """The shape of what the block makes of x (T, N, C, H, W)."""
    return (*x.shape[:3], *(size // 2 if pool else size for size in x.shape[3:]))
