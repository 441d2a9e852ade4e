"""The gradient in the mask: that of the dense weight, times the weight, summed over taps."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.sizes import DEFAULT_TILE, Tile
from metasparse_ext.triton.masked_conv.weight_grad import slices_of_weight_grad
from metasparse_ext.triton.operands import accumulator, per_task, task_stride

_BLOCK = 256  # kernels a program


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
        grad: (T, N, O, Ho, Wo); the other operands as for
            :func:`~metasparse_ext.triton.masked_conv.masked_conv`.
        x: (T, N, I, H, W).
        weight: (T, O, I, kh, kw).
        stride, padding: Those of the convolution.
        tile: As for :func:`~metasparse_ext.triton.masked_conv.masked_conv_weight_grad`.
        precision: Of float32 products.

    Returns:
        (T, O, I), contiguous.
    """
    kernel = weight.shape[3:]
    tensors = (grad, x, None, None, None)
    partial = slices_of_weight_grad(tensors, kernel, stride, padding, tile, precision, final=False)
    slices, tasks, out_channels, channels = partial.shape[:4]
    out = x.new_empty(tasks, out_channels, channels)
    weight = per_task(weight)
    pairs = out_channels * channels
    mask_grad_kernel[(triton.cdiv(pairs, _BLOCK), tasks)](
        partial, weight, out, task_stride(weight), slices, pairs, kernel[0] * kernel[1], _BLOCK,
        accumulator(x.dtype)[1],
    )  # fmt: skip
    return out
