"""The masked convolution, and the sum of two."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.block_lists import lists_of
from metasparse_ext.triton.masked_conv.loads import load_patches, load_weights, pixel_of, zeros
from metasparse_ext.triton.masked_conv.sizes import DEFAULT_TILE, PAIR_TILE, Cut, Sizes, Tile
from metasparse_ext.triton.operands import operands


@triton.jit
def reduce_forward(
    acc, X, WEIGHT, MASK, LIST, COUNT, n, y, x, inside_p, ob, t,
    S: tl.constexpr, CUT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """acc (o, p) plus the sum over (i, tap) of weights times patches, of task t."""
    BLOCKS: tl.constexpr = (S.I * S.TAPS + CUT.reduction - 1) // CUT.reduction
    SKIP: tl.constexpr = CUT.skip and MASKED
    o = ob * CUT.rows + tl.arange(0, CUT.rows)
    line = t * tl.num_programs(1) + ob
    count = BLOCKS
    if SKIP:
        count = tl.load(COUNT + line)
    for j in range(count):
        block = j
        if SKIP:
            block = tl.load(LIST + line * BLOCKS + j)
        k = block * CUT.reduction + tl.arange(0, CUT.reduction)
        i, tap, inside_k = k // S.TAPS, k % S.TAPS, k < S.I * S.TAPS
        a = load_patches(X, i, tap, inside_k, n, y, x, inside_p, S)
        inside = (o < S.O)[:, None] & inside_k[None, :]
        w = load_weights(WEIGHT, MASK, o[:, None], i[None, :], tap[None, :], inside, S, MASKED)
        acc = tl.dot(w, a, acc, input_precision=CUT.precision, out_dtype=acc.dtype)
    return acc


@triton.jit
def forward_kernel(
    X1, WEIGHT1, MASK1, X2, WEIGHT2, MASK2, BIAS, LIST1, COUNT1, LIST2, COUNT2, Y,
    x1_stride, weight1_stride, mask1_stride, x2_stride, weight2_stride, mask2_stride, bias_stride,
    N, S: tl.constexpr, CUT: tl.constexpr,
    MASKED1: tl.constexpr, PAIR: tl.constexpr, MASKED2: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """y = conv(x1, w1 m1) (+ conv(x2, w2 m2)) + bias; one program per (pixels, o, task)."""
    PLANE: tl.constexpr = S.HO * S.WO
    ob, t = tl.program_id(1), tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * CUT.pixels + tl.arange(0, CUT.pixels)
    n, y, x = pixel_of(p, S.HO, S.WO, CUT.wide)
    inside_p = n < N
    o = ob * CUT.rows + tl.arange(0, CUT.rows)
    inside_o = o < S.O

    acc = zeros(CUT.rows, CUT.pixels, CUT)
    if BIASED:
        bias = tl.load(BIAS + t * bias_stride + o, mask=inside_o, other=0.0)
        acc += bias.to(CUT.sums)[:, None]
    acc = reduce_forward(
        acc, X1 + t * x1_stride, WEIGHT1 + t * weight1_stride, MASK1 + t * mask1_stride,
        LIST1, COUNT1, n, y, x, inside_p, ob, t, S, CUT, MASKED1,
    )  # fmt: skip
    if PAIR:
        acc = reduce_forward(
            acc, X2 + t * x2_stride, WEIGHT2 + t * weight2_stride, MASK2 + t * mask2_stride,
            LIST2, COUNT2, n, y, x, inside_p, ob, t, S, CUT, MASKED2,
        )  # fmt: skip
    at = (n * (S.O * PLANE) + y * S.WO + x)[None, :] + (o * PLANE)[:, None]
    Y += t * N * (S.O * PLANE)
    tl.store(Y + at, acc.to(Y.dtype.element_ty), mask=inside_o[:, None] & inside_p[None, :])


def _launch(first, second, bias, stride, padding, tile: Tile, precision: str) -> Tensor:
    x, weight, mask = first
    tasks, samples, channels, *image = x.shape
    sizes = Sizes.of((channels, weight.shape[1]), image, weight.shape[3:], stride, padding)
    y = x.new_empty(tasks, samples, sizes.O, sizes.HO, sizes.WO)
    pointers, strides = operands(*first, *second, bias)
    lists = lists_of((mask, second[2]), False, sizes, tile, y)
    grid = (
        triton.cdiv(samples * sizes.HO * sizes.WO, tile.pixels),
        triton.cdiv(sizes.O, tile.rows),
        tasks,
    )
    forward_kernel[grid](
        *pointers, *lists, y, *strides, samples, sizes, Cut.of(tile, precision, x, y),
        mask is not None, second[0] is not None, second[2] is not None, bias is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


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
        precision: Of float32 products: "tf32", "tf32x3" (as accurate as float32) or "ieee", which
            is without tensor cores and wants eight warps.

    Returns:
        (T, N, O, Ho, Wo), dtype of x, contiguous.
    """
    nothing = (None, None, None)
    return _launch((x, weight, mask), nothing, bias, stride, padding, tile, precision)


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
    tile: Tile = PAIR_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """conv(x1, weight1 * mask1) + conv(x2, weight2 * mask2) + bias, as :func:`masked_conv`."""
    first, second = (x1, weight1, mask1), (x2, weight2, mask2)
    return _launch(first, second, bias, stride, padding, tile, precision)
