"""The masked convolution family as implicit matrix products, batched over tasks.

A 3x3 layer over a few images is a product of a small matrix of weights with a wide one of pixels.
Nothing is unfolded in memory: each program computes the addresses of its tile of patches. The
reduction runs over flat pairs (channel, tap), which is how the weights of an output channel lie
in memory and which wastes nothing on an image of one or three channels.

    forward       y[o, p]       = sum over (i, tap)  w[o, i, tap]  x[i, p * stride + tap]
    input grad    gx[i, p]      = sum over (o, tap)  w[o, i, tap]  g[o, (p - tap) / stride]
    weight grad   gw[o, i, tap] = sum over pixels    g[o, p]       x[i, p * stride + tap]

Pixels run along the fast axis of every tile, so that neighbouring threads read neighbouring
addresses. An input gradient of stride s is s * s problems, one per parity of the pixel, each with
the taps that reach it and no others. A weight gradient is cut into slices of pixels to fill the
GPU; slices are added in a fixed order by a second launch, so results repeat bit for bit.

A mask multiplies the tile of weights; where it is 0 the weight is not used, NaN included. With
``skip`` the blocks of the reduction that the mask leaves empty are listed on the device first, and
only the others are visited. That pays for masks with structure, such as pruned channels: a block
of 64 outputs and 3 inputs is never empty in an irregular mask.

A sum of two convolutions, such as the tangent conv(x_dot, w) + conv(x, w_dot), is one kernel that
runs two reductions into the same accumulator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import (
    PROGRAMS,
    accumulator,
    is_wide,
    operands,
    per_task,
    task_stride,
)


class Tile(NamedTuple):
    """How one kernel is cut: out channels x pixels x reduction, and what the compiler is told."""

    rows: int = 64
    pixels: int = 64
    reduction: int = 32
    skip: bool = False
    warps: int = 4
    stages: int = 3


DEFAULT_TILE = Tile()
_BLOCK = 256  # elements a program of the elementwise kernels


# ---- tiles of operands ---------------------------------------------------------------------------


@triton.jit
def pixel_of(p, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Flat pixel index -> (sample, row, column); the sample carries the width of all addresses."""
    n = p // (ROWS * COLUMNS)
    if WIDE:
        n = n.to(tl.int64)
    return n, p // COLUMNS % ROWS, p % COLUMNS


@triton.jit
def load_patches(
    X, i, tap, inside_k, n, y, x, inside_p,
    I: tl.constexpr, H: tl.constexpr, W: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """What taps (k,) of channels (k,) see at output pixels (p,): (k, p), 0 beyond the image."""
    row = (y * SH - PH)[None, :] + (tap // KW)[:, None]
    column = (x * SW - PW)[None, :] + (tap % KW)[:, None]
    inside = inside_k[:, None] & inside_p[None, :]
    inside &= (row >= 0) & (row < H) & (column >= 0) & (column < W)
    at = (n * (I * H * W))[None, :] + (i * (H * W))[:, None] + row * W + column
    return tl.load(X + at, mask=inside, other=0.0)


@triton.jit
def load_weights(
    WEIGHT, MASK, o, i, tap, inside, I: tl.constexpr, TAPS: tl.constexpr, MASKED: tl.constexpr
):
    """weight * mask at broadcast (o, i, tap); 0 where the mask is 0, whatever the weight holds."""
    pair = o * I + i
    w = tl.load(WEIGHT + pair * TAPS + tap, mask=inside, other=0.0)
    if MASKED:
        m = tl.load(MASK + pair, mask=inside, other=0.0)
        w = tl.where(m != 0, w * m, 0.0)
    return w


# ---- lists of the blocks that a mask leaves ------------------------------------------------------


@triton.jit
def taps_of_phase(
    phase, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """Of a parity of input pixels: the first tap that reaches it, and how many do, by axis."""
    first_y, first_x = (phase // SW + PH) % SH, (phase % SW + PW) % SW
    count_y, count_x = (KH - first_y + SH - 1) // SH, (KW - first_x + SW - 1) // SW
    return first_y, first_x, tl.maximum(count_y, 0), tl.maximum(count_x, 0)


@triton.jit
def list_blocks_kernel(
    MASK, LIST, COUNT, mask_stride, BLOCKS,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ROW_STEP: tl.constexpr, CHANNEL_STEP: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, BY_PHASE: tl.constexpr,
    BR: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The blocks of BK (channel, tap) pairs in which some kernel of a block of rows is active."""
    block_row, phase, t = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    r, c = block_row * BR + tl.arange(0, BR), tl.arange(0, BC)
    m = tl.load(
        MASK + t * mask_stride + r[:, None] * ROW_STEP + c[None, :] * CHANNEL_STEP,
        mask=(r < ROWS)[:, None] & (c < CHANNELS)[None, :],
        other=0.0,
    )
    active = tl.max((m != 0).to(tl.int32), 0)
    taps = KH * KW
    if BY_PHASE:
        _, _, count_y, count_x = taps_of_phase(phase, KH, KW, SH, SW, PH, PW)
        taps = count_y * count_x
    line = (t * tl.num_programs(1) + phase) * tl.num_programs(0) + block_row
    count = 0
    for block in range(tl.cdiv(CHANNELS * taps, BK)):
        first, last = block * BK // taps, (block * BK + BK - 1) // taps
        if tl.max(tl.where((c >= first) & (c <= last), active, 0), 0) != 0:
            tl.store(LIST + line * BLOCKS + count, block)
            count += 1
    tl.store(COUNT + line, count)


def list_blocks(
    mask: Tensor, by_phase: bool, window: tuple[int, ...], tile: Tile
) -> tuple[Tensor, Tensor]:
    """Lists for the forward pass (rows o, channels i) or, by parity, the input gradient (i, o).

    ``window`` is (kh, kw, stride, stride, padding, padding). Returns (T, parities, row blocks,
    blocks) int32 block numbers, of which the first ``counts`` (T, parities, row blocks) are set.
    """
    tasks, out_channels, in_channels = mask.shape
    rows, channels = (in_channels, out_channels) if by_phase else (out_channels, in_channels)
    steps = (1, in_channels) if by_phase else (in_channels, 1)
    phases = window[2] * window[3] if by_phase else 1
    row_blocks = triton.cdiv(rows, tile.rows)
    blocks = triton.cdiv(channels * window[0] * window[1], tile.reduction)
    lists = mask.new_empty((tasks, phases, row_blocks, blocks), dtype=torch.int32)
    counts = mask.new_empty((tasks, phases, row_blocks), dtype=torch.int32)
    list_blocks_kernel[(row_blocks, phases, tasks)](
        mask, lists, counts, task_stride(mask), blocks, rows, channels, *steps, *window, by_phase,
        tile.rows, tile.reduction, triton.next_power_of_2(channels),
    )  # fmt: skip
    return lists, counts


# ---- forward -------------------------------------------------------------------------------------


@triton.jit
def reduce_forward(
    acc, X, WEIGHT, MASK, LIST, COUNT, n, y, x, inside_p, ob, t,
    x_stride, weight_stride, mask_stride,
    I: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, MASKED: tl.constexpr, SKIP: tl.constexpr,
    BO: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """acc (o, p) plus the sum over (i, tap) of weights times patches, of task t."""
    TAPS: tl.constexpr = KH * KW
    BLOCKS: tl.constexpr = (I * TAPS + BK - 1) // BK
    X += t * x_stride
    WEIGHT += t * weight_stride
    MASK += t * mask_stride
    o = ob * BO + tl.arange(0, BO)
    line = t * tl.num_programs(1) + ob
    count = BLOCKS
    if SKIP:
        count = tl.load(COUNT + line)
    for j in range(count):
        block = j
        if SKIP:
            block = tl.load(LIST + line * BLOCKS + j)
        k = block * BK + tl.arange(0, BK)
        i, tap, inside_k = k // TAPS, k % TAPS, k < I * TAPS
        a = load_patches(X, i, tap, inside_k, n, y, x, inside_p, I, H, W, KW, SH, SW, PH, PW)
        w = load_weights(
            WEIGHT, MASK, o[:, None], i[None, :], tap[None, :],
            (o < O)[:, None] & inside_k[None, :], I, TAPS, MASKED,
        )  # fmt: skip
        acc = tl.dot(w, a, acc, input_precision=PREC, out_dtype=acc.dtype)
    return acc


@triton.jit
def forward_kernel(
    X1, WEIGHT1, MASK1, X2, WEIGHT2, MASK2, BIAS, LIST1, COUNT1, LIST2, COUNT2, Y,
    x1_stride, weight1_stride, mask1_stride, x2_stride, weight2_stride, mask2_stride, bias_stride,
    N,
    I: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr,
    MASKED1: tl.constexpr, PAIR: tl.constexpr, MASKED2: tl.constexpr, BIASED: tl.constexpr,
    SKIP: tl.constexpr, WIDE: tl.constexpr,
    BO: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """y = conv(x1, w1 m1) (+ conv(x2, w2 m2)) + bias; one program per (pixels, o, task)."""
    HO: tl.constexpr = (H + 2 * PH - KH) // SH + 1
    WO: tl.constexpr = (W + 2 * PW - KW) // SW + 1
    ob, t = tl.program_id(1), tl.program_id(2).to(tl.int64)
    n, y, x = pixel_of(tl.program_id(0) * BP + tl.arange(0, BP), HO, WO, WIDE)
    inside_p = n < N
    o = ob * BO + tl.arange(0, BO)
    inside_o = o < O

    acc = tl.zeros((BO, BP), ACC)
    if BIASED:
        acc += tl.load(BIAS + t * bias_stride + o, mask=inside_o, other=0.0).to(ACC)[:, None]
    acc = reduce_forward(
        acc, X1, WEIGHT1, MASK1, LIST1, COUNT1, n, y, x, inside_p, ob, t,
        x1_stride, weight1_stride, mask1_stride,
        I, H, W, O, KH, KW, SH, SW, PH, PW, MASKED1, SKIP and MASKED1, BO, BK, PREC,
    )  # fmt: skip
    if PAIR:
        acc = reduce_forward(
            acc, X2, WEIGHT2, MASK2, LIST2, COUNT2, n, y, x, inside_p, ob, t,
            x2_stride, weight2_stride, mask2_stride,
            I, H, W, O, KH, KW, SH, SW, PH, PW, MASKED2, SKIP and MASKED2, BO, BK, PREC,
        )  # fmt: skip
    at = (n * (O * HO * WO) + y * WO + x)[None, :] + (o * (HO * WO))[:, None]
    Y += t * N * (O * HO * WO)
    tl.store(Y + at, acc.to(Y.dtype.element_ty), mask=inside_o[:, None] & inside_p[None, :])


# ---- input gradient ------------------------------------------------------------------------------


@triton.jit
def reduce_input_grad(
    acc, GRAD, WEIGHT, MASK, LIST, COUNT, n, y, x, inside_p, ib, phase, t,
    grad_stride, weight_stride, mask_stride,
    I: tl.constexpr, O: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, MASKED: tl.constexpr, SKIP: tl.constexpr,
    BI: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """acc (i, p) plus the sum over (o, taps of this parity) of weights times grad, of task t."""
    TAPS: tl.constexpr = KH * KW
    BLOCKS: tl.constexpr = (O * TAPS + BK - 1) // BK  # of a list, where every tap may belong
    GRAD += t * grad_stride
    WEIGHT += t * weight_stride
    MASK += t * mask_stride
    i = ib * BI + tl.arange(0, BI)
    line = (t * (SH * SW) + phase) * tl.cdiv(I, BI) + ib
    first_y, first_x, count_y, count_x = taps_of_phase(phase, KH, KW, SH, SW, PH, PW)
    taps = count_y * count_x
    count = tl.cdiv(O * taps, BK)
    if SKIP:
        count = tl.load(COUNT + line)
    for j in range(count):
        block = j
        if SKIP:
            block = tl.load(LIST + line * BLOCKS + j)
        k = block * BK + tl.arange(0, BK)
        o, tap, inside_k = k // taps, k % taps, k < O * taps
        ky, kx = first_y + tap // count_x * SH, first_x + tap % count_x * SW
        # Exact wherever it is not negative, as y + PH and ky are of one parity.
        above, left = y[None, :] + (PH - ky)[:, None], x[None, :] + (PW - kx)[:, None]
        row, column = above // SH, left // SW
        inside = inside_k[:, None] & inside_p[None, :] & (above >= 0) & (left >= 0)
        inside &= (row < HO) & (column < WO)
        at = (n * (O * HO * WO))[None, :] + (o * (HO * WO))[:, None] + row * WO + column
        g = tl.load(GRAD + at, mask=inside, other=0.0)
        w = load_weights(
            WEIGHT, MASK, o[None, :], i[:, None], (ky * KW + kx)[None, :],
            (i < I)[:, None] & inside_k[None, :], I, TAPS, MASKED,
        )  # fmt: skip
        acc = tl.dot(w, g, acc, input_precision=PREC, out_dtype=acc.dtype)
    return acc


@triton.jit
def input_grad_kernel(
    GRAD1, WEIGHT1, MASK1, GRAD2, WEIGHT2, MASK2, LIST1, COUNT1, LIST2, COUNT2, GX,
    grad1_stride, weight1_stride, mask1_stride, grad2_stride, weight2_stride, mask2_stride, N,
    I: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr,
    MASKED1: tl.constexpr, PAIR: tl.constexpr, MASKED2: tl.constexpr,
    SKIP: tl.constexpr, WIDE: tl.constexpr,
    BI: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The transposed convolution of grad1 with w1 m1 (plus that of grad2 with w2 m2).

    One program per (pixels of one parity, parity and in channels, task).
    """
    HO: tl.constexpr = (H + 2 * PH - KH) // SH + 1
    WO: tl.constexpr = (W + 2 * PW - KW) // SW + 1
    HQ: tl.constexpr = (H + SH - 1) // SH
    WQ: tl.constexpr = (W + SW - 1) // SW
    t = tl.program_id(2).to(tl.int64)
    # The last parity has the most taps at stride 2 and padding 1: it starts first.
    phase = SH * SW - 1 - tl.program_id(1) % (SH * SW)
    ib = tl.program_id(1) // (SH * SW)
    n, y, x = pixel_of(tl.program_id(0) * BP + tl.arange(0, BP), HQ, WQ, WIDE)
    y, x = y * SH + phase // SW, x * SW + phase % SW
    inside_p = (n < N) & (y < H) & (x < W)

    acc = tl.zeros((BI, BP), ACC)
    acc = reduce_input_grad(
        acc, GRAD1, WEIGHT1, MASK1, LIST1, COUNT1, n, y, x, inside_p, ib, phase, t,
        grad1_stride, weight1_stride, mask1_stride,
        I, O, HO, WO, KH, KW, SH, SW, PH, PW, MASKED1, SKIP and MASKED1, BI, BK, PREC,
    )  # fmt: skip
    if PAIR:
        acc = reduce_input_grad(
            acc, GRAD2, WEIGHT2, MASK2, LIST2, COUNT2, n, y, x, inside_p, ib, phase, t,
            grad2_stride, weight2_stride, mask2_stride,
            I, O, HO, WO, KH, KW, SH, SW, PH, PW, MASKED2, SKIP and MASKED2, BI, BK, PREC,
        )  # fmt: skip
    i = ib * BI + tl.arange(0, BI)
    at = (n * (I * H * W) + y * W + x)[None, :] + (i * (H * W))[:, None]
    GX += t * N * (I * H * W)
    tl.store(GX + at, acc.to(GX.dtype.element_ty), mask=(i < I)[:, None] & inside_p[None, :])


# ---- weight gradient -----------------------------------------------------------------------------


@triton.jit
def reduce_weight_grad(
    acc, GRAD, X, first, last, o, i, tap, inside_k, N,
    I: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr,
    HO: tl.constexpr, WO: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """acc (o, k) plus the sum over pixels first..last of grad (o, p) times patches (k, p)."""
    for start in range(first, last, BP):
        p = start + tl.arange(0, BP)
        n, y, x = pixel_of(p, HO, WO, WIDE)
        inside_p = (p < last) & (n < N)
        at = (n * (O * HO * WO) + y * WO + x)[None, :] + (o * (HO * WO))[:, None]
        g = tl.load(GRAD + at, mask=(o < O)[:, None] & inside_p[None, :], other=0.0)
        a = load_patches(X, i, tap, inside_k, n, y, x, inside_p, I, H, W, KW, SH, SW, PH, PW)
        acc = tl.dot(g, tl.trans(a), acc, input_precision=PREC, out_dtype=acc.dtype)
    return acc


@triton.jit
def weight_grad_kernel(
    GRAD1, X1, GRAD2, X2, MASK, PARTIAL,
    grad1_stride, x1_stride, grad2_stride, x2_stride, mask_stride, N, slices, slice_pixels,
    I: tl.constexpr, H: tl.constexpr, W: tl.constexpr, O: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr,
    PAIR: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    BO: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """A slice of pixels of a weight gradient, or of the sum of two.

    PARTIAL is (slices, T, O, I * taps). One program per (slice and (i, tap) pairs, out channels,
    task). With a mask the gradient is multiplied by it, and a tile without an active kernel costs
    one store of zeros.
    """
    HO: tl.constexpr = (H + 2 * PH - KH) // SH + 1
    WO: tl.constexpr = (W + 2 * PW - KW) // SW + 1
    TAPS: tl.constexpr = KH * KW
    t = tl.program_id(2).to(tl.int64)
    part, kb = tl.program_id(0) % slices, tl.program_id(0) // slices
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    k = kb * BK + tl.arange(0, BK)
    i, tap, inside_k = k // TAPS, k % TAPS, k < I * TAPS
    inside = (o < O)[:, None] & inside_k[None, :]

    first = part * slice_pixels
    last = first + slice_pixels
    if MASKED:
        pair = o[:, None] * I + i[None, :]
        m = tl.load(MASK + t * mask_stride + pair, mask=inside, other=0.0)
        last = tl.where(tl.max(tl.max((m != 0).to(tl.int32), 1), 0) != 0, last, first)
    acc = tl.zeros((BO, BK), ACC)
    acc = reduce_weight_grad(
        acc, GRAD1 + t * grad1_stride, X1 + t * x1_stride, first, last, o, i, tap, inside_k, N,
        I, H, W, O, HO, WO, KW, SH, SW, PH, PW, WIDE, BP, PREC,
    )  # fmt: skip
    if PAIR:
        acc = reduce_weight_grad(
            acc, GRAD2 + t * grad2_stride, X2 + t * x2_stride, first, last, o, i, tap, inside_k, N,
            I, H, W, O, HO, WO, KW, SH, SW, PH, PW, WIDE, BP, PREC,
        )  # fmt: skip
    if MASKED:
        acc = tl.where(m != 0, acc * m.to(ACC), 0.0)
    PARTIAL += (part.to(tl.int64) * tl.num_programs(2) + t) * (O * I * TAPS)
    at = o[:, None] * (I * TAPS) + k[None, :]
    tl.store(PARTIAL + at, acc.to(PARTIAL.dtype.element_ty), mask=inside)


@triton.jit
def add_slices_kernel(PARTIAL, OUT, slices, SIZE, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """OUT (SIZE,) = PARTIAL (slices, SIZE) summed over its slices, in order."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), ACC)
    for _ in range(slices):
        acc += tl.load(PARTIAL + e, mask=e < SIZE, other=0.0)
        PARTIAL += SIZE
    tl.store(OUT + e, acc.to(OUT.dtype.element_ty), mask=e < SIZE)


@triton.jit
def mask_grad_kernel(
    PARTIAL, WEIGHT, OUT, weight_stride, slices, PAIRS, TAPS: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """OUT (T, O I): over taps, the sum of weight times PARTIAL (slices, T, O I taps) of all slices.

    One program per (kernels, task).
    """
    t = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < PAIRS
    acc = tl.zeros((BLOCK,), ACC)
    for tap in range(TAPS):
        at = e * TAPS + tap
        gradient = tl.zeros((BLOCK,), ACC)
        for s in range(slices):
            line = s * tl.num_programs(1) + t
            gradient += tl.load(PARTIAL + line * PAIRS * TAPS + at, mask=inside, other=0.0)
        acc += gradient * tl.load(WEIGHT + t * weight_stride + at, mask=inside, other=0.0).to(ACC)
    tl.store(OUT + t * PAIRS + e, acc.to(OUT.dtype.element_ty), mask=inside)


# ---- launchers -----------------------------------------------------------------------------------


def _out_size(image, kernel, stride, padding) -> list[int]:
    sizes = zip(image, kernel, stride, padding, strict=True)
    return [(size + 2 * p - k) // s + 1 for size, k, s, p in sizes]


def _precision(dtype: torch.dtype, precision: str) -> str:
    return precision if dtype == torch.float32 else "ieee"


def _lists(masks, by_phase: bool, window: tuple[int, ...], tile: Tile, stand_in: Tensor):
    """Lists and counts for each of two masks; pointers that nobody reads where there is none."""
    for mask in masks:
        if tile.skip and mask is not None:
            yield from list_blocks(per_task(mask), by_phase, window, tile)
        else:
            yield from (stand_in, stand_in)


def masked_conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    tile: Tile = DEFAULT_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """conv(x, weight * mask) + bias.

    Args:
        x: (T, N, I, H, W), float64, float32, bfloat16 or float16; like every operand, with any
            strides, 0 along T for one that the tasks share.
        weight: (T, O, I, kh, kw).
        mask: (T, O, I) or None.
        bias: (T, O) or None.
        stride: Vertical and horizontal step.
        padding: Rows and columns of zeros on each side.
        tile: Cut of the problem: out channels, pixels, (in channel, tap) pairs.
        precision: Of float32 products: "tf32", "tf32x3" (as accurate as float32) or "ieee".

    Returns:
        (T, N, O, Ho, Wo), dtype of x, contiguous.
    """
    nothing = (None, None, None)
    return _forward((x, weight, mask), nothing, bias, stride, padding, tile, precision)


def masked_conv_pair(
    x1: Tensor,
    weight1: Tensor,
    mask1: Tensor | None,
    x2: Tensor,
    weight2: Tensor,
    mask2: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    tile: Tile = DEFAULT_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """conv(x1, weight1 * mask1) + conv(x2, weight2 * mask2) + bias, as :func:`masked_conv`."""
    first, second = (x1, weight1, mask1), (x2, weight2, mask2)
    return _forward(first, second, bias, stride, padding, tile, precision)


def _forward(first, second, bias, stride, padding, tile: Tile, precision: str) -> Tensor:
    x, weight, mask = first
    tasks, samples, channels, *image = x.shape
    out_channels, kernel = weight.shape[1], weight.shape[3:]
    window = (*kernel, *stride, *padding)
    y = x.new_empty(tasks, samples, out_channels, *_out_size(image, kernel, stride, padding))
    pointers, strides = operands(*first, *second, bias)
    grid = (
        triton.cdiv(samples * y.shape[3] * y.shape[4], tile.pixels),
        triton.cdiv(out_channels, tile.rows),
        tasks,
    )
    forward_kernel[grid](
        *pointers, *_lists((mask, second[2]), False, window, tile, y), y, *strides, samples,
        channels, *image, out_channels, *window,
        mask is not None, second[0] is not None, second[2] is not None, bias is not None,
        tile.skip, is_wide(x, y), tile.rows, tile.pixels, tile.reduction,
        accumulator(x.dtype)[1], _precision(x.dtype, precision),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def masked_conv_input_grad(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    input_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    tile: Tile = DEFAULT_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """The gradient in x of <grad, conv(x, weight * mask)>.

    Args:
        grad: (T, N, O, Ho, Wo); the other operands as for :func:`masked_conv`.
        weight: (T, O, I, kh, kw).
        mask: (T, O, I) or None.
        input_size: (H, W).
        stride, padding: Those of the convolution.
        tile: Cut of the problem: in channels, pixels of one parity, (out channel, tap) pairs.
        precision: Of float32 products.

    Returns:
        (T, N, I, H, W), contiguous.
    """
    first, nothing = (grad, weight, mask), (None, None, None)
    return _input_grad(first, nothing, input_size, stride, padding, tile, precision)


def masked_conv_input_grad_pair(
    grad1: Tensor,
    weight1: Tensor,
    mask1: Tensor | None,
    grad2: Tensor,
    weight2: Tensor,
    mask2: Tensor | None,
    input_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    tile: Tile = DEFAULT_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """The sum of two :func:`masked_conv_input_grad`."""
    first, second = (grad1, weight1, mask1), (grad2, weight2, mask2)
    return _input_grad(first, second, input_size, stride, padding, tile, precision)


def _input_grad(first, second, size, stride, padding, tile: Tile, precision: str) -> Tensor:
    grad, weight, mask = first
    tasks, samples, out_channels = grad.shape[:3]
    channels, kernel = weight.shape[2], weight.shape[3:]
    window = (*kernel, *stride, *padding)
    gx = grad.new_empty(tasks, samples, channels, *size)
    pointers, strides = operands(*first, *second)
    of_one_parity = [triton.cdiv(side, s) for side, s in zip(size, stride, strict=True)]
    grid = (
        triton.cdiv(samples * of_one_parity[0] * of_one_parity[1], tile.pixels),
        triton.cdiv(channels, tile.rows) * stride[0] * stride[1],
        tasks,
    )
    input_grad_kernel[grid](
        *pointers, *_lists((mask, second[2]), True, window, tile, gx), gx, *strides, samples,
        channels, *size, out_channels, *window,
        mask is not None, second[0] is not None, second[2] is not None,
        tile.skip, is_wide(grad, gx), tile.rows, tile.pixels, tile.reduction,
        accumulator(grad.dtype)[1], _precision(grad.dtype, precision),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return gx


def masked_conv_weight_grad(
    grad: Tensor,
    x: Tensor,
    mask: Tensor | None,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    tile: Tile = DEFAULT_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """The gradient in w of <grad, conv(x, w * mask)>.

    Args:
        grad: (T, N, O, Ho, Wo); the other operands as for :func:`masked_conv`.
        x: (T, N, I, H, W).
        mask: (T, O, I), with which only active kernels are computed; None for all of them.
        kernel_size: (kh, kw).
        stride, padding: Those of the convolution.
        tile: Cut of the problem: out channels, pixels of one step, (in channel, tap) pairs.
        precision: Of float32 products.

    Returns:
        (T, O, I, kh, kw), contiguous, 0 where the mask is 0.
    """
    return masked_conv_weight_grad_pair(
        grad, x, None, None, mask, kernel_size, stride, padding, tile=tile, precision=precision
    )


def masked_conv_weight_grad_pair(
    grad1: Tensor,
    x1: Tensor,
    grad2: Tensor | None,
    x2: Tensor | None,
    mask: Tensor | None,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    tile: Tile = DEFAULT_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """The sum of two :func:`masked_conv_weight_grad` with one mask."""
    operands_ = (grad1, x1, grad2, x2, mask)
    partial = _slices_of_weight_grad(operands_, kernel_size, stride, padding, tile, precision)
    if partial.shape[0] == 1:
        return partial[0]
    out = x1.new_empty(partial.shape[1:])
    add_slices_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
        partial, out, partial.shape[0], out.numel(), _BLOCK, accumulator(x1.dtype)[1]
    )
    return out


def masked_conv_mask_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    tile: Tile = DEFAULT_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """The gradient in m of <grad, conv(x, weight * m)>: dense, pruned kernels included.

    Args:
        grad: (T, N, O, Ho, Wo); the other operands as for :func:`masked_conv`.
        x: (T, N, I, H, W).
        weight: (T, O, I, kh, kw).
        stride, padding: Those of the convolution.
        tile: As for :func:`masked_conv_weight_grad`.
        precision: Of float32 products.

    Returns:
        (T, O, I), contiguous.
    """
    kernel = weight.shape[3:]
    operands_ = (grad, x, None, None, None)
    partial = _slices_of_weight_grad(operands_, kernel, stride, padding, tile, precision)
    slices, tasks, out_channels, channels = partial.shape[:4]
    out = x.new_empty(tasks, out_channels, channels)
    weight = per_task(weight)
    pairs = out_channels * channels
    mask_grad_kernel[(triton.cdiv(pairs, _BLOCK), tasks)](
        partial, weight, out, task_stride(weight), slices, pairs, kernel[0] * kernel[1], _BLOCK,
        accumulator(x.dtype)[1],
    )  # fmt: skip
    return out


def _slice_pixels(pixels: int, programs: int, tile: Tile) -> tuple[int, int]:
    """How many slices of pixels fill the GPU beside ``programs`` tiles, and the pixels of one."""
    longest = triton.cdiv(pixels, tile.pixels)
    count = min(longest, triton.cdiv(PROGRAMS, programs))
    size = triton.cdiv(longest, count) * tile.pixels
    return triton.cdiv(pixels, size), size


def _slices_of_weight_grad(tensors, kernel, stride, padding, tile: Tile, precision: str) -> Tensor:
    """The weight gradient of each slice of pixels, (slices, T, O, I, kh, kw), in the dtype of sums.

    A single slice is final, and of the dtype of x.
    """
    grad, x, grad2, _, mask = tensors
    tasks, samples, channels, *image = x.shape
    out_channels, pixels = grad.shape[2], samples * grad.shape[3] * grad.shape[4]
    blocks = triton.cdiv(channels * kernel[0] * kernel[1], tile.reduction)
    row_blocks = triton.cdiv(out_channels, tile.rows)
    slices, slice_pixels = _slice_pixels(pixels, blocks * row_blocks * tasks, tile)
    sums, sums_in_kernel = accumulator(x.dtype)
    partial = x.new_empty(
        (slices, tasks, out_channels, channels, *kernel), dtype=x.dtype if slices == 1 else sums
    )
    pointers, strides = operands(*tensors)
    weight_grad_kernel[(blocks * slices, row_blocks, tasks)](
        *pointers, partial, *strides, samples, slices, slice_pixels,
        channels, *image, out_channels, *kernel, *stride, *padding,
        grad2 is not None, mask is not None, is_wide(grad, x),
        tile.rows, tile.pixels, tile.reduction, sums_in_kernel, _precision(x.dtype, precision),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial
