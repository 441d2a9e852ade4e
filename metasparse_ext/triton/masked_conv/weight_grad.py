"""The weight gradient of the masked convolution, the sum of two, and the gradient in the mask.

It is cut into slices of pixels to fill the GPU. Slices are added in a fixed order by a second
launch, so results repeat bit for bit. A program has up to three taps of a row of a block of
channels: a step reads the gradient once for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

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
from metasparse_ext.triton.operands import PROGRAMS, accumulator, operands, per_task, task_stride

_BLOCK = 256  # elements a program of add_slices_kernel, kernels one of mask_grad_kernel


@triton.jit
def add_outer(acc, x, g, S: tl.constexpr):
    """acc (c, r) plus the product of patches x (c, p) and gradients g (p, r)."""
    if S.ROUNDED:
        x = round_tf32(x)
    return multiply(x, g, acc, S)


@triton.jit
def tap_patches(X, row, column, c, kx, S: tl.constexpr):
    """What one tap of channels (c,) sees from pixels (p,): (c, p)."""
    inside = (within(row, S.H) & within(column + kx, S.W))[None, :]
    if S.C % S.channels != 0:
        inside &= (c < S.C)[:, None]
    channel = c.to(tl.int64) * (S.H * S.W)
    return tl.load((X + kx)[None, :] + channel[:, None], mask=inside, other=0.0)


@triton.jit
def reduce_pixels(
    acc0, acc1, acc2, GRAD, X, first, last, r, c, ky, kx, N, S: tl.constexpr, TAPS: tl.constexpr
):
    """acc (c, r) of each of TAPS taps from (ky, kx) on, plus the sum over pixels first..last."""
    PIXELS: tl.constexpr = S.pixels
    PLANE: tl.constexpr = S.HR * S.WR
    for start in range(first, last, PIXELS):
        p = start + tl.arange(0, PIXELS)
        n, y, x = pixel_of(p, S.HR, S.WR)
        inside = (p < last) & (n < N)
        at = (n * (S.R * PLANE) + (y * S.WR + x))[None, :] + (r * PLANE)[:, None]
        g = tl.load(GRAD + at, mask=(r < S.R)[:, None] & inside[None, :], other=0.0)
        if S.ROUNDED:
            g = round_tf32(g)
        g = tl.trans(g)
        row, column = y * S.SH - S.PH + ky, x * S.SW - S.PW
        here = X + n * (S.C * S.H * S.W) + (row * S.W + column)
        row = tl.where(inside, row, OUTSIDE)
        if S.flat:
            acc0 = add_outer(acc0, load_flat(here, row, column, S), g, S)
        else:
            acc0 = add_outer(acc0, tap_patches(here, row, column, c, kx, S), g, S)
            if TAPS > 1:
                acc1 = add_outer(acc1, tap_patches(here, row, column, c, kx + 1, S), g, S)
            if TAPS > 2:
                acc2 = add_outer(acc2, tap_patches(here, row, column, c, kx + 2, S), g, S)
    return acc0, acc1, acc2


@triton.jit
def store_tap(PARTIAL, acc, kernel, tap, inside, m, S: tl.constexpr, MASKED: tl.constexpr):
    """The gradient of one tap, times the mask if there is one."""
    if MASKED:
        acc = tl.where(m != 0, acc * m.to(S.sums), 0.0)
    tl.store(PARTIAL + kernel * S.TAPS + tap, acc.to(PARTIAL.dtype.element_ty), mask=inside)


@triton.jit
def weight_grad_block(
    sliced, rows, GRAD1, X1, GRAD2, X2, MASK, PARTIAL,
    grad1_stride, x1_stride, grad2_stride, x2_stride, mask_stride, N, slices, slice_pixels,
    S: tl.constexpr, TAPS: tl.constexpr, PAIR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The part of a slice, of some taps of a channel block; and of a row block."""
    ROWS: tl.constexpr = S.rows
    CHANNELS: tl.constexpr = S.channels
    GROUPS: tl.constexpr = (S.KW + TAPS - 1) // TAPS
    t = tl.program_id(2).to(tl.int64)
    part, block = sliced % slices, sliced // slices
    cb, group = block % S.STEPS, block // S.STEPS
    ky, kx = group // GROUPS, group % GROUPS * TAPS
    r = rows * ROWS + tl.arange(0, ROWS)
    c = cb * CHANNELS + tl.arange(0, CHANNELS)
    channel, tap = c, ky * S.KW + kx
    if S.flat:
        channel, tap = c // S.TAPS, (c % S.TAPS)[:, None]
    kernel = r[None, :] * S.C + channel[:, None]
    inside = (r < S.R)[None, :] & (channel < S.C)[:, None]

    first = part * slice_pixels
    last = first + slice_pixels
    m = kernel
    if MASKED:
        m = tl.load(MASK + t * mask_stride + kernel, mask=inside, other=0.0)
        last = tl.where(tl.max(tl.max((m != 0).to(tl.int32), 1), 0) != 0, last, first)
    acc0 = zeros(CHANNELS, ROWS, S)
    acc1, acc2 = acc0, acc0
    acc0, acc1, acc2 = reduce_pixels(
        acc0, acc1, acc2, GRAD1 + t * grad1_stride, X1 + t * x1_stride, first, last, r, c, ky, kx,
        N, S, TAPS,
    )  # fmt: skip
    if PAIR:
        acc0, acc1, acc2 = reduce_pixels(
            acc0, acc1, acc2, GRAD2 + t * grad2_stride, X2 + t * x2_stride, first, last, r, c, ky,
            kx, N, S, TAPS,
        )  # fmt: skip
    PARTIAL += (part.to(tl.int64) * tl.num_programs(2) + t) * (S.R * S.C * S.TAPS)
    store_tap(PARTIAL, acc0, kernel, tap, inside, m, S, MASKED)
    if TAPS > 1:
        keep = inside & (r + (kx + 1) < r + S.KW)[None, :]
        store_tap(PARTIAL, acc1, kernel, tap + 1, keep, m, S, MASKED)
    if TAPS > 2:
        keep = inside & (r + (kx + 2) < r + S.KW)[None, :]
        store_tap(PARTIAL, acc2, kernel, tap + 2, keep, m, S, MASKED)


@triton.jit
def weight_grad_kernel(
    GRAD1, X1, GRAD2, X2, MASK, PARTIAL,
    grad1_stride, x1_stride, grad2_stride, x2_stride, mask_stride, N, slices, slice_pixels,
    S: tl.constexpr, TAPS: tl.constexpr, PAIR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A slice of pixels of a weight gradient, or of the sum of two.

    PARTIAL is (slices, T, O, I, taps). One program per (slice, taps and channel block; row block;
    task). With a mask the gradient is multiplied by it, and a tile without an active kernel costs
    one store of zeros.
    """
    weight_grad_block(
        tl.program_id(0), tl.program_id(1), GRAD1, X1, GRAD2, X2, MASK, PARTIAL, grad1_stride,
        x1_stride, grad2_stride, x2_stride, mask_stride, N, slices, slice_pixels, S, TAPS, PAIR,
        MASKED,
    )  # fmt: skip


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


def slice_pixels(pixels: int, programs: int, tile: Tile) -> tuple[int, int]:
    """How many slices of pixels fill the GPU beside ``programs`` tiles, and the pixels of one."""
    longest = triton.cdiv(pixels, tile.pixels)
    count = min(longest, triton.cdiv(PROGRAMS, programs))
    size = triton.cdiv(longest, count) * tile.pixels
    return triton.cdiv(pixels, size), size


class Slices(NamedTuple):
    """How a weight gradient is cut.

    Attributes:
        sizes: Of the convolution.
        taps: Of a program.
        blocks, row_blocks: Programs of a slice: taps and channels, and rows.
        count, pixels: Slices, and the pixels of one.
    """

    sizes: Sizes
    taps: int
    blocks: int
    row_blocks: int
    count: int
    pixels: int

    @classmethod
    def of(cls, grad: Tensor, x: Tensor, window, tile: Tile, precision: str) -> Slices:
        """For grad (T, N, O, Ho, Wo) and x (T, N, I, H, W)."""
        kernel = window[0]
        tasks, samples, channels, *image = x.shape
        rows, out_image = grad.shape[2], grad.shape[3:]
        sizes = Sizes.of((rows, channels), (out_image, image), window, tile, x.dtype, precision)
        taps = 1 if sizes.flat else min(kernel[1], 3)
        groups = 1 if sizes.flat else kernel[0] * triton.cdiv(kernel[1], taps)
        blocks, row_blocks = sizes.STEPS * groups, triton.cdiv(rows, tile.rows)
        pixels = samples * out_image[0] * out_image[1]
        count = slice_pixels(pixels, blocks * row_blocks * tasks, tile)
        return cls(sizes, taps, blocks, row_blocks, *count)

    def partial(self, x: Tensor, *, final: bool) -> Tensor:
        """Memory (slices, T, O, I, kh, kw), of the dtype of sums; of x if one slice is final."""
        s = self.sizes
        dtype = x.dtype if final and self.count == 1 else accumulator(x.dtype)[0]
        return x.new_empty((self.count, x.shape[0], s.R, s.C, s.KH, s.KW), dtype=dtype)


def weight_grad_slices(
    terms: tuple[Tensor | None, ...],
    mask: Tensor | None,
    window: tuple[tuple[int, int], ...],
    tile: Tile,
    precision: str,
    *,
    final: bool,
) -> Tensor:
    """The weight gradient of each slice of pixels, (slices, T, O, I, kh, kw), in the dtype of sums.

    ``terms`` are grad and x, and the same of a second term or None; ``window`` is the kernel,
    stride and padding. Where a single slice is ``final`` it is of the dtype of x.
    """
    grad, x, grad2, _ = terms
    cut = Slices.of(grad, x, window, tile, precision)
    partial = cut.partial(x, final=final)
    pointers, strides = operands(*terms, mask)
    weight_grad_kernel[(cut.blocks * cut.count, cut.row_blocks, x.shape[0])](
        *pointers, partial, *strides, x.shape[1], cut.count, cut.pixels, cut.sizes, cut.taps,
        grad2 is not None, mask is not None, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial


def weight_grad(terms, mask, window, tile: Tile, precision: str) -> Tensor:
    """The weight gradient (T, O, I, kh, kw); arguments as for :func:`weight_grad_slices`."""
    partial = weight_grad_slices(terms, mask, window, tile, precision, final=True)
    return added(partial, terms[1])


def added(partial: Tensor, x: Tensor) -> Tensor:
    """The sum of the slices (slices, T, O, I, kh, kw), in the dtype of x."""
    if partial.shape[0] == 1:
        return partial[0]
    out = x.new_empty(partial.shape[1:])
    add_slices_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
        partial, out, partial.shape[0], out.numel(), _BLOCK, accumulator(x.dtype)[1]
    )
    return out


def mask_grad(terms, weight: Tensor, window, tile: Tile, precision: str) -> Tensor:
    """The gradient in the mask (T, O, I): that of the dense weight, times it, summed over taps."""
    x = terms[1]
    partial = weight_grad_slices(terms, None, window, tile, precision, final=False)
    slices, tasks, rows, channels = partial.shape[:4]
    out = x.new_empty(tasks, rows, channels)
    weight = per_task(weight)
    kernels, taps = rows * channels, window[0][0] * window[0][1]
    mask_grad_kernel[(triton.cdiv(kernels, _BLOCK), tasks)](
        partial, weight, out, task_stride(weight), slices, kernels, taps, _BLOCK,
        accumulator(x.dtype)[1],
    )  # fmt: skip
    return out
