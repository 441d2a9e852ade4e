"""The input gradient of the masked convolution, and the sum of two.

A gradient of stride s is s * s problems, one per parity of the pixel, each with the taps that reach
it and no others.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.block_lists import lists_of
from metasparse_ext.triton.masked_conv.loads import load_weights, pixel_of, taps_of_phase, zeros
from metasparse_ext.triton.masked_conv.sizes import DEFAULT_TILE, PAIR_TILE, Cut, Sizes, Tile
from metasparse_ext.triton.operands import operands


@triton.jit
def load_reached(GRAD, o, ky, kx, inside_k, n, y, x, inside_p, S: tl.constexpr):
    """The output pixels to which taps (k,) of channels (k,) took input pixels (p,): (k, p)."""
    # Exact wherever it is not negative, as y + PH and ky are of one parity.
    above, left = y[None, :] + (S.PH - ky)[:, None], x[None, :] + (S.PW - kx)[:, None]
    row, column = above // S.SH, left // S.SW
    inside = inside_k[:, None] & inside_p[None, :] & (above >= 0) & (left >= 0)
    inside &= (row < S.HO) & (column < S.WO)
    plane = S.HO * S.WO
    at = (n * (S.O * plane))[None, :] + (o * plane)[:, None] + row * S.WO + column
    return tl.load(GRAD + at, mask=inside, other=0.0)


@triton.jit
def reduce_input_grad(
    acc, GRAD, WEIGHT, MASK, LIST, COUNT, n, y, x, inside_p, ib, phase, t,
    S: tl.constexpr, CUT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """acc (i, p) plus the sum over (o, taps of this parity) of weights times grad, of task t."""
    # of a list, where every tap may belong
    BLOCKS: tl.constexpr = (S.O * S.TAPS + CUT.reduction - 1) // CUT.reduction
    SKIP: tl.constexpr = CUT.skip and MASKED
    i = ib * CUT.rows + tl.arange(0, CUT.rows)
    line = (t * S.PHASES + phase) * tl.cdiv(S.I, CUT.rows) + ib
    first_y, first_x, count_y, count_x = taps_of_phase(phase, S)
    taps = count_y * count_x
    count = tl.cdiv(S.O * taps, CUT.reduction)
    if SKIP:
        count = tl.load(COUNT + line)
    for j in range(count):
        block = j
        if SKIP:
            block = tl.load(LIST + line * BLOCKS + j)
        k = block * CUT.reduction + tl.arange(0, CUT.reduction)
        o, tap, inside_k = k // taps, k % taps, k < S.O * taps
        ky, kx = first_y + tap // count_x * S.SH, first_x + tap % count_x * S.SW
        g = load_reached(GRAD, o, ky, kx, inside_k, n, y, x, inside_p, S)
        inside, at_tap = (i < S.I)[:, None] & inside_k[None, :], (ky * S.KW + kx)[None, :]
        w = load_weights(WEIGHT, MASK, o[None, :], i[:, None], at_tap, inside, S, MASKED)
        acc = tl.dot(w, g, acc, input_precision=CUT.precision, out_dtype=acc.dtype)
    return acc


@triton.jit
def input_grad_kernel(
    GRAD1, WEIGHT1, MASK1, GRAD2, WEIGHT2, MASK2, LIST1, COUNT1, LIST2, COUNT2, GX,
    grad1_stride, weight1_stride, mask1_stride, grad2_stride, weight2_stride, mask2_stride, N,
    S: tl.constexpr, CUT: tl.constexpr,
    MASKED1: tl.constexpr, PAIR: tl.constexpr, MASKED2: tl.constexpr,
):  # fmt: skip
    """The transposed convolution of grad1 with w1 m1 (plus that of grad2 with w2 m2).

    One program per (pixels of one parity, parity and in channels, task).
    """
    t = tl.program_id(2).to(tl.int64)
    # The last parity has the most taps at stride 2 and padding 1: it starts first.
    phase = S.PHASES - 1 - tl.program_id(1) % S.PHASES
    ib = tl.program_id(1) // S.PHASES
    p = tl.program_id(0) * CUT.pixels + tl.arange(0, CUT.pixels)
    n, y, x = pixel_of(p, S.HQ, S.WQ, CUT.wide)
    y, x = y * S.SH + phase // S.SW, x * S.SW + phase % S.SW
    inside_p = (n < N) & (y < S.H) & (x < S.W)

    acc = zeros(CUT.rows, CUT.pixels, CUT)
    acc = reduce_input_grad(
        acc, GRAD1 + t * grad1_stride, WEIGHT1 + t * weight1_stride, MASK1 + t * mask1_stride,
        LIST1, COUNT1, n, y, x, inside_p, ib, phase, t, S, CUT, MASKED1,
    )  # fmt: skip
    if PAIR:
        acc = reduce_input_grad(
            acc, GRAD2 + t * grad2_stride, WEIGHT2 + t * weight2_stride, MASK2 + t * mask2_stride,
            LIST2, COUNT2, n, y, x, inside_p, ib, phase, t, S, CUT, MASKED2,
        )  # fmt: skip
    i = ib * CUT.rows + tl.arange(0, CUT.rows)
    at = (n * (S.I * S.H * S.W) + y * S.W + x)[None, :] + (i * (S.H * S.W))[:, None]
    GX += t * N * (S.I * S.H * S.W)
    tl.store(GX + at, acc.to(GX.dtype.element_ty), mask=(i < S.I)[:, None] & inside_p[None, :])


def _launch(first, second, size, stride, padding, tile: Tile, precision: str) -> Tensor:
    grad, weight, mask = first
    tasks, samples, out_channels = grad.shape[:3]
    sizes = Sizes.of((weight.shape[2], out_channels), size, weight.shape[3:], stride, padding)
    gx = grad.new_empty(tasks, samples, sizes.I, *size)
    pointers, strides = operands(*first, *second)
    lists = lists_of((mask, second[2]), True, sizes, tile, gx)
    grid = (
        triton.cdiv(samples * sizes.HQ * sizes.WQ, tile.pixels),
        triton.cdiv(sizes.I, tile.rows) * sizes.PHASES,
        tasks,
    )
    input_grad_kernel[grid](
        *pointers, *lists, gx, *strides, samples, sizes, Cut.of(tile, precision, grad, gx),
        mask is not None, second[0] is not None, second[2] is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return gx


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
        grad: (T, N, O, Ho, Wo); the other operands as for
            :func:`~metasparse_ext.triton.masked_conv.masked_conv`.
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
    return _launch(first, nothing, input_size, stride, padding, tile, precision)


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
    tile: Tile = PAIR_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """The sum of two :func:`masked_conv_input_grad`."""
    first, second = (grad1, weight1, mask1), (grad2, weight2, mask2)
    return _launch(first, second, input_size, stride, padding, tile, precision)
