"""The weight gradient of the masked convolution, and the sum of two.

It is cut into slices of pixels to fill the GPU. Slices are added in a fixed order by a second
launch, so results repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.loads import load_patches, pixel_of, zeros
from metasparse_ext.triton.masked_conv.sizes import DEFAULT_TILE, PAIR_TILE, Cut, Sizes, Tile
from metasparse_ext.triton.operands import PROGRAMS, accumulator, operands

_BLOCK = 256  # elements a program of add_slices_kernel


@triton.jit
def reduce_weight_grad(
    acc, GRAD, X, first, last, o, i, tap, inside_k, N, S: tl.constexpr, CUT: tl.constexpr
):
    """acc (o, k) plus the sum over pixels first..last of grad (o, p) times patches (k, p)."""
    PLANE: tl.constexpr = S.HO * S.WO
    for start in range(first, last, CUT.pixels):
        p = start + tl.arange(0, CUT.pixels)
        n, y, x = pixel_of(p, S.HO, S.WO, CUT.wide)
        inside_p = (p < last) & (n < N)
        at = (n * (S.O * PLANE) + y * S.WO + x)[None, :] + (o * PLANE)[:, None]
        g = tl.load(GRAD + at, mask=(o < S.O)[:, None] & inside_p[None, :], other=0.0)
        a = load_patches(X, i, tap, inside_k, n, y, x, inside_p, S)
        acc = tl.dot(g, tl.trans(a), acc, input_precision=CUT.precision, out_dtype=acc.dtype)
    return acc


@triton.jit
def weight_grad_kernel(
    GRAD1, X1, GRAD2, X2, MASK, PARTIAL,
    grad1_stride, x1_stride, grad2_stride, x2_stride, mask_stride, N, slices, slice_pixels,
    S: tl.constexpr, CUT: tl.constexpr, PAIR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A slice of pixels of a weight gradient, or of the sum of two.

    PARTIAL is (slices, T, O, I * taps). One program per (slice and (i, tap) pairs, out channels,
    task). With a mask the gradient is multiplied by it, and a tile without an active kernel costs
    one store of zeros.
    """
    t = tl.program_id(2).to(tl.int64)
    part, kb = tl.program_id(0) % slices, tl.program_id(0) // slices
    o = tl.program_id(1) * CUT.rows + tl.arange(0, CUT.rows)
    k = kb * CUT.reduction + tl.arange(0, CUT.reduction)
    i, tap, inside_k = k // S.TAPS, k % S.TAPS, k < S.I * S.TAPS
    inside = (o < S.O)[:, None] & inside_k[None, :]

    first = part * slice_pixels
    last = first + slice_pixels
    if MASKED:
        pair = o[:, None] * S.I + i[None, :]
        m = tl.load(MASK + t * mask_stride + pair, mask=inside, other=0.0)
        last = tl.where(tl.max(tl.max((m != 0).to(tl.int32), 1), 0) != 0, last, first)
    acc = zeros(CUT.rows, CUT.reduction, CUT)
    acc = reduce_weight_grad(
        acc, GRAD1 + t * grad1_stride, X1 + t * x1_stride, first, last, o, i, tap, inside_k, N,
        S, CUT,
    )  # fmt: skip
    if PAIR:
        acc = reduce_weight_grad(
            acc, GRAD2 + t * grad2_stride, X2 + t * x2_stride, first, last, o, i, tap, inside_k, N,
            S, CUT,
        )  # fmt: skip
    if MASKED:
        acc = tl.where(m != 0, acc * m.to(CUT.sums), 0.0)
    PARTIAL += (part.to(tl.int64) * tl.num_programs(2) + t) * (S.O * S.I * S.TAPS)
    at = o[:, None] * (S.I * S.TAPS) + k[None, :]
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


def slice_pixels(pixels: int, programs: int, tile: Tile) -> tuple[int, int]:
    """How many slices of pixels fill the GPU beside ``programs`` tiles, and the pixels of one."""
    longest = triton.cdiv(pixels, tile.pixels)
    count = min(longest, triton.cdiv(PROGRAMS, programs))
    size = triton.cdiv(longest, count) * tile.pixels
    return triton.cdiv(pixels, size), size


def slices_of_weight_grad(
    tensors: tuple[Tensor | None, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    tile: Tile,
    precision: str,
    *,
    final: bool,
) -> Tensor:
    """The weight gradient of each slice of pixels, (slices, T, O, I, kh, kw), in the dtype of sums.

    ``tensors`` are grad and x, the same of a second term, and a mask. Where a single slice is
    ``final`` it is of the dtype of x.
    """
    grad, x, grad2, _, mask = tensors
    tasks, samples, channels, *image = x.shape
    sizes = Sizes.of((channels, grad.shape[2]), image, kernel, stride, padding)
    blocks = triton.cdiv(channels * sizes.TAPS, tile.reduction)
    row_blocks = triton.cdiv(sizes.O, tile.rows)
    pixels, programs = samples * sizes.HO * sizes.WO, blocks * row_blocks * tasks
    slices, size = slice_pixels(pixels, programs, tile)
    partial = x.new_empty(
        (slices, tasks, sizes.O, channels, *kernel),
        dtype=x.dtype if final and slices == 1 else accumulator(x.dtype)[0],
    )
    pointers, strides = operands(*tensors)
    weight_grad_kernel[(blocks * slices, row_blocks, tasks)](
        *pointers, partial, *strides, samples, slices, size,
        sizes, Cut.of(tile, precision, grad, x), grad2 is not None, mask is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return partial


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
        grad: (T, N, O, Ho, Wo); the other operands as for
            :func:`~metasparse_ext.triton.masked_conv.masked_conv`.
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
    tile: Tile = PAIR_TILE,
    precision: str = "tf32x3",
) -> Tensor:
    """The sum of two :func:`masked_conv_weight_grad` with one mask."""
    tensors = (grad1, x1, grad2, x2, mask)
    partial = slices_of_weight_grad(
        tensors, kernel_size, stride, padding, tile, precision, final=True
    )
    if partial.shape[0] == 1:
        return partial[0]
    out = x1.new_empty(partial.shape[1:])
    add_slices_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
        partial, out, partial.shape[0], out.numel(), _BLOCK, accumulator(x1.dtype)[1]
    )
    return out
