"""Lists, made on the device, of the blocks of a reduction that a mask leaves.

A kernel that skips visits only these. That pays for masks with structure, such as pruned channels:
a block of 64 outputs and 3 inputs is never empty in an irregular mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.loads import taps_of_phase
from metasparse_ext.triton.masked_conv.sizes import Sizes, Tile
from metasparse_ext.triton.operands import per_task, task_stride


@triton.jit
def list_blocks_kernel(
    MASK, LIST, COUNT, mask_stride, BLOCKS, S: tl.constexpr, BY_PHASE: tl.constexpr,
    BR: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The blocks of BK (channel, tap) pairs in which some kernel of a block of rows is active."""
    ROWS: tl.constexpr = S.I if BY_PHASE else S.O
    CHANNELS: tl.constexpr = S.O if BY_PHASE else S.I
    ROW_STEP: tl.constexpr = 1 if BY_PHASE else S.I
    CHANNEL_STEP: tl.constexpr = S.I if BY_PHASE else 1
    block_row, phase, t = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    r, c = block_row * BR + tl.arange(0, BR), tl.arange(0, BC)
    m = tl.load(
        MASK + t * mask_stride + r[:, None] * ROW_STEP + c[None, :] * CHANNEL_STEP,
        mask=(r < ROWS)[:, None] & (c < CHANNELS)[None, :],
        other=0.0,
    )
    active = tl.max((m != 0).to(tl.int32), 0)
    taps = S.TAPS
    if BY_PHASE:
        _, _, count_y, count_x = taps_of_phase(phase, S)
        taps = count_y * count_x
    line = (t * tl.num_programs(1) + phase) * tl.num_programs(0) + block_row
    count = 0
    for block in range(tl.cdiv(CHANNELS * taps, BK)):
        first, last = block * BK // taps, (block * BK + BK - 1) // taps
        if tl.max(tl.where((c >= first) & (c <= last), active, 0), 0) != 0:
            tl.store(LIST + line * BLOCKS + count, block)
            count += 1
    tl.store(COUNT + line, count)


def list_blocks(mask: Tensor, by_phase: bool, sizes: Sizes, tile: Tile) -> tuple[Tensor, Tensor]:
    """Lists for the forward pass (rows o, channels i) or, by parity, the input gradient (i, o).

    Returns (T, parities, row blocks, blocks) int32 block numbers, of which the first ``counts``
    (T, parities, row blocks) are set.
    """
    rows, channels = (sizes.I, sizes.O) if by_phase else (sizes.O, sizes.I)
    phases = sizes.PHASES if by_phase else 1
    row_blocks = triton.cdiv(rows, tile.rows)
    blocks = triton.cdiv(channels * sizes.TAPS, tile.reduction)
    lines = (mask.shape[0], phases, row_blocks)
    lists = mask.new_empty((*lines, blocks), dtype=torch.int32)
    counts = mask.new_empty(lines, dtype=torch.int32)
    list_blocks_kernel[lines[::-1]](
        mask, lists, counts, task_stride(mask), blocks, sizes, by_phase,
        tile.rows, tile.reduction, triton.next_power_of_2(channels),
    )  # fmt: skip
    return lists, counts


def lists_of(
    masks: tuple[Tensor | None, ...], by_phase: bool, sizes: Sizes, tile: Tile, stand_in: Tensor
) -> Iterator[Tensor]:
    """Lists and counts for each of the masks; pointers that nobody reads where there is none."""
    for mask in masks:
        if tile.skip and mask is not None:
            yield from list_blocks(per_task(mask), by_phase, sizes, tile)
        else:
            yield from (stand_in, stand_in)
