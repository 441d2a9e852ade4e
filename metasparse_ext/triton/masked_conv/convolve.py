"""The masked convolution and its input gradient, and the sums of two: one kernel.

Both gather: a pixel of the result reads source pixels at fixed distances from its own place. The
reduction is a loop over blocks of channels and rows of taps; the taps of a row follow each other in
one step, so what a step costs in addresses and tests is shared by them. A pixel's address is
computed once: all that a step adds to it is the same for all pixels, and a tap is a constant.

An input gradient of stride s is s * s problems, one per parity of the pixel, each with the taps
that reach it and no others.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.loads import (
    OUTSIDE,
    load_flat,
    multiply,
    pixel_of,
    round_tf32,
    within,
    zeros,
)
from metasparse_ext.triton.masked_conv.sizes import Sizes, Tile
from metasparse_ext.triton.masked_conv.weights import pack_weights, weights_of
from metasparse_ext.triton.operands import operands


@triton.jit
def add_product(acc, x, w, S: tl.constexpr):
    """acc (p, r) plus the product of patches x (c, p) and weights w (r, c)."""
    x = tl.trans(x)
    if S.ROUNDED:
        x = round_tf32(x)
    return multiply(x, tl.trans(w), acc, S)


@triton.jit
def reduce_taps(acc, X, WEIGHT, row, column, S: tl.constexpr, PHASE: tl.constexpr):
    """acc (p, r) plus the sum over channels and the taps of a phase of patches times weights.

    X points at each pixel's place of the first tap, in channel 0 of its source image.
    """
    ROWS: tl.constexpr = S.rows
    CHANNELS: tl.constexpr = S.channels
    FIRST_Y: tl.constexpr = (PHASE // S.SDW + S.PH) % S.SDH
    FIRST_X: tl.constexpr = (PHASE % S.SDW + S.PW) % S.SDW
    COUNT_Y: tl.constexpr = (S.KH - FIRST_Y + S.SDH - 1) // S.SDH
    COUNT_X: tl.constexpr = (S.KW - FIRST_X + S.SDW - 1) // S.SDW
    STEP: tl.constexpr = -1 if S.transposed else 1
    BLOCK: tl.constexpr = ROWS * CHANNELS
    c = tl.arange(0, CHANNELS)
    channel = c.to(tl.int64) * (S.H * S.W)
    weights = WEIGHT + tl.arange(0, ROWS)[:, None] * CHANNELS + c[None, :]
    if COUNT_Y > 0:
        for step in range(S.STEPS * COUNT_Y):
            block, tap = step // COUNT_Y, step % COUNT_Y
            in_row = within(row + STEP * tap, S.H)
            here = X + (block * (CHANNELS * S.H * S.W) + STEP * tap * S.W)
            x_row = here[None, :] + channel[:, None]
            w_row = weights + ((FIRST_Y + S.SDH * tap) * (S.KW * S.STEPS) + block) * BLOCK
            for b in tl.static_range(COUNT_X):
                inside = (in_row & within(column + STEP * b, S.W))[None, :]
                if S.C % CHANNELS != 0:
                    inside &= (c < S.C - block * CHANNELS)[:, None]
                x = tl.load(x_row + STEP * b, mask=inside, other=0.0)
                w = tl.load(w_row + (FIRST_X + S.SDW * b) * (S.STEPS * BLOCK))
                acc = add_product(acc, x, w, S)
    return acc


@triton.jit
def reduce_term(
    acc, X, WEIGHT, MASK, rb, n, y, x, inside, S: tl.constexpr, PHASE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """acc (p, r) plus one convolution at pixels (n, y, x) of a phase, for the row block rb.

    Weights are packed, or those of the task where one step reduces over all of them.
    """
    ROWS: tl.constexpr = S.rows
    CHANNELS: tl.constexpr = S.channels
    FIRST_Y: tl.constexpr = (PHASE // S.SDW + S.PH) % S.SDH
    FIRST_X: tl.constexpr = (PHASE % S.SDW + S.PW) % S.SDW
    if S.transposed:
        row = y + (PHASE // S.SDW + S.PH - FIRST_Y) // S.SDH
        column = x + (PHASE % S.SDW + S.PW - FIRST_X) // S.SDW
    else:
        row, column = y * S.SH - S.PH, x * S.SW - S.PW
    X += n * (S.C * S.H * S.W) + (row * S.W + column)
    row = tl.where(inside, row, OUTSIDE)
    if S.flat:
        k, r = tl.arange(0, CHANNELS)[None, :], rb * ROWS + tl.arange(0, ROWS)[:, None]
        there = (r < S.R) & (k < S.C * S.TAPS)
        w = weights_of(WEIGHT, MASK, r, k // S.TAPS, k % S.TAPS, there, S, MASKED)
        acc = add_product(acc, load_flat(X, row, column, S), w, S)
    else:
        WEIGHT += rb * (S.BLOCKS * ROWS * CHANNELS)
        acc = reduce_taps(acc, X, WEIGHT, row, column, S, PHASE)
    return acc


@triton.jit
def convolve_block(
    pixels, block, X1, WEIGHT1, MASK1, X2, WEIGHT2, MASK2, BIAS, Y,
    x1_stride, weight1_stride, mask1_stride, x2_stride, weight2_stride, mask2_stride, bias_stride,
    N, S: tl.constexpr, PAIR: tl.constexpr, BIASED: tl.constexpr, MASKED1: tl.constexpr,
    MASKED2: tl.constexpr,
):  # fmt: skip
    """The part of y of a block of pixels of one phase, and of a block of rows and a phase."""
    ROWS: tl.constexpr = S.rows
    PIXELS: tl.constexpr = S.pixels
    PLANE: tl.constexpr = S.HR * S.WR
    PHASES: tl.constexpr = S.PHASES
    t = tl.program_id(2).to(tl.int64)
    # The last phase has the most taps at stride 2 and padding 1: it starts first.
    phase = S.PHASES - 1 - block % S.PHASES
    rb = block // S.PHASES
    n, y, x = pixel_of(pixels * PIXELS + tl.arange(0, PIXELS), S.HQ, S.WQ)
    to_y, to_x = y * S.SDH + phase // S.SDW, x * S.SDW + phase % S.SDW
    inside = (n < N) & (to_y < S.HR) & (to_x < S.WR)
    r = rb * ROWS + tl.arange(0, ROWS)

    acc = zeros(PIXELS, ROWS, S)
    if BIASED:
        bias = tl.load(BIAS + t * bias_stride + r, mask=r < S.R, other=0.0)
        acc += bias.to(S.sums)[None, :]
    for number in tl.static_range(PHASES):
        if phase == number:
            acc = reduce_term(
                acc, X1 + t * x1_stride, WEIGHT1 + t * weight1_stride, MASK1 + t * mask1_stride,
                rb, n, y, x, inside, S, number, MASKED1,
            )  # fmt: skip
            if PAIR:
                acc = reduce_term(
                    acc, X2 + t * x2_stride, WEIGHT2 + t * weight2_stride,
                    MASK2 + t * mask2_stride, rb, n, y, x, inside, S, number, MASKED2,
                )  # fmt: skip
    at = (n * (S.R * PLANE) + (to_y * S.WR + to_x))[:, None] + (r * PLANE)[None, :]
    Y += t * N * (S.R * PLANE)
    tl.store(Y + at, acc.to(Y.dtype.element_ty), mask=inside[:, None] & (r < S.R)[None, :])


@triton.jit
def convolve_kernel(
    X1, WEIGHT1, MASK1, X2, WEIGHT2, MASK2, BIAS, Y,
    x1_stride, weight1_stride, mask1_stride, x2_stride, weight2_stride, mask2_stride, bias_stride,
    N, S: tl.constexpr, PAIR: tl.constexpr, BIASED: tl.constexpr, MASKED1: tl.constexpr,
    MASKED2: tl.constexpr,
):  # fmt: skip
    """y = conv(x1, w1 m1) (+ conv(x2, w2 m2)) + bias; packed weights have their masks in them.

    One program per (pixels of one phase, row block and phase, task).
    """
    convolve_block(
        tl.program_id(0), tl.program_id(1), X1, WEIGHT1, MASK1, X2, WEIGHT2, MASK2, BIAS, Y,
        x1_stride, weight1_stride, mask1_stride, x2_stride, weight2_stride, mask2_stride,
        bias_stride, N, S, PAIR, BIASED, MASKED1, MASKED2,
    )  # fmt: skip


def blocks_of(samples: int, sizes: Sizes) -> tuple[int, int]:
    """Blocks of pixels of a phase, and of rows times phases, of the result of one task."""
    pixels = triton.cdiv(samples * sizes.HQ * sizes.WQ, sizes.pixels)
    return pixels, triton.cdiv(sizes.R, sizes.rows) * sizes.PHASES


def convolve(
    terms: tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]],
    bias: Tensor | None,
    image: tuple[int, int],
    window: tuple[tuple[int, int], ...],
    tile: Tile,
    precision: str,
    *,
    transposed: bool = False,
) -> Tensor:
    """The convolution, or input gradient, of (source, weight, mask), plus that of a second term.

    ``image`` is that of the result, ``window`` the kernel, stride and padding.
    """
    source, weight, _ = terms[0]
    tasks, samples, channels, *source_image = source.shape
    rows = weight.shape[2 if transposed else 1]
    sizes = Sizes.of(
        (rows, channels), (image, source_image), window, tile, source.dtype, precision,
        transposed=transposed,
    )  # fmt: skip
    result = source.new_empty(tasks, samples, rows, *image)
    paired = terms[1][0] is not None
    if not sizes.flat:
        terms = [
            (x, None if weight is None else pack_weights(weight, mask, sizes), None)
            for x, weight, mask in terms
        ]
    pointers, strides = operands(*terms[0], *terms[1], bias)
    convolve_kernel[(*blocks_of(samples, sizes), tasks)](
        *pointers, result, *strides, samples, sizes, paired, bias is not None,
        terms[0][2] is not None, terms[1][2] is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return result
