"""Weights times mask, as the tiles that a convolution reads.

Where many programs read a weight, a small launch before the convolution packs it: what would be
done to it by each of them is done once, and a tile of weights lies in memory as one piece. Where
few do, the launch would cost more than it saves, and they read the weight where it lies.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.loads import round_tf32
from metasparse_ext.triton.masked_conv.sizes import Sizes
from metasparse_ext.triton.operands import operands

#: Pixels of a task's result from which on weights are packed: the programs that read a tile of them
#: are so many, by the pixels of a tile. Below, the small launch takes longer than what it saves.
PACKED_PIXELS = 16384


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

    One program per (row and channel blocks, tap, task). Flat: the channels are (channel, tap)
    pairs, and there is one tap.
    """
    ROWS: tl.constexpr = S.rows
    CHANNELS: tl.constexpr = S.channels
    rb, cb = tl.program_id(0) // S.STEPS, tl.program_id(0) % S.STEPS
    tap, t = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, CHANNELS)[None, :]
    r, c = rb * ROWS + row, cb * CHANNELS + column
    if S.flat:
        tap, c = c % S.TAPS, c // S.TAPS
    inside = (r < S.R) & (c < S.C)
    WEIGHT += t * weight_stride
    w = weights_of(WEIGHT, MASK + t * mask_stride, r, c, tap, inside, S, MASKED)
    block = (t * tl.num_programs(0) // S.STEPS + rb) * S.BLOCKS + tl.program_id(1) * S.STEPS + cb
    PACKED += block * (ROWS * CHANNELS)
    tl.store(PACKED + row * CHANNELS + column, w)


def are_packed(samples: int, sizes: Sizes) -> bool:
    """Whether weights are packed before a convolution of so many samples a task."""
    return samples * sizes.HQ * sizes.WQ >= PACKED_PIXELS


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
