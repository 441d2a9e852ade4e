"""Weights times mask, as the tiles that a convolution reads.

A small launch before a convolution packs them: what would be done to a weight by each of the
programs that read it is done once, and a tile of weights lies in memory as one piece. (Read where
they lie, they are four times the instructions of the inner loop.) A reduction of one step has no
loop: its programs read the weights themselves, and there is no launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.loads import round_tf32
from metasparse_ext.triton.masked_conv.sizes import Sizes
from metasparse_ext.triton.operands import operands


@triton.jit
def weights_of(WEIGHT, MASK, r, c, tap, inside, S: tl.constexpr, MASKED: tl.constexpr):
    """A tile of a task's weights times mask: rows r, channels c, at a tap; 0 where not inside.

    Where the mask is 0 the weight is not used, NaN included. The tile is rounded as products are.
    """
    kernel = c * S.R + r if S.transposed else r * S.C + c
    w = tl.load(WEIGHT + kernel * S.TAPS + tap, mask=inside, other=0.0)
    if MASKED:
        m = tl.load(MASK + kernel, mask=inside, other=0.0)
        w = tl.where(m != 0, w * m, 0.0)
    if S.ROUNDED:
        w = round_tf32(w)
    return w


@triton.jit
def pack_weights_kernel(
    WEIGHT, MASK, PACKED, weight_stride, mask_stride, S: tl.constexpr, MASKED: tl.constexpr
):
    """PACKED (T, row blocks, taps, channel blocks, rows, channels); zeros where there is no kernel.

    One program per (row and channel blocks, tap, task).
    """
    ROWS: tl.constexpr = S.rows
    CHANNELS: tl.constexpr = S.channels
    rb, cb = tl.program_id(0) // S.STEPS, tl.program_id(0) % S.STEPS
    tap, t = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, CHANNELS)[None, :]
    r, c = rb * ROWS + row, cb * CHANNELS + column
    inside = (r < S.R) & (c < S.C)
    WEIGHT += t * weight_stride
    w = weights_of(WEIGHT, MASK + t * mask_stride, r, c, tap, inside, S, MASKED)
    block = (t * tl.num_programs(0) // S.STEPS + rb) * S.BLOCKS + tl.program_id(1) * S.STEPS + cb
    PACKED += block * (ROWS * CHANNELS)
    tl.store(PACKED + row * CHANNELS + column, w)


def pack_weights(weight: Tensor, mask: Tensor | None, sizes: Sizes) -> Tensor:
    """weight * mask, packed: (T, row blocks, taps x channel blocks, rows, channels).

    T is 1 where all tasks share the weights and the mask.
    """
    pointers, strides = operands(weight, mask)
    tasks = 1 if not any(strides) else weight.shape[0]
    row_blocks = triton.cdiv(sizes.R, sizes.rows)
    packed = weight.new_empty(tasks, row_blocks, sizes.BLOCKS, sizes.rows, sizes.channels)
    grid = (row_blocks * sizes.STEPS, sizes.BLOCKS // sizes.STEPS, tasks)
    pack_weights_kernel[grid](*pointers, packed, *strides, sizes, mask is not None)
    return packed.expand(weight.shape[0], *packed.shape[1:])
