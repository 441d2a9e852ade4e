"""Weights times masks, and what its derivatives are made of: one launch each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import accumulator, operands


@triton.jit
def masked_weight_kernel(
    WEIGHT, MASK, OUT, weight_stride, mask_stride, SIZE, TAPS: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """OUT (T, SIZE) = w m of SIZE weights a task, TAPS for each entry of a mask; 0 where m is 0."""
    t = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < SIZE
    w = tl.load(WEIGHT + t * weight_stride + e, mask=inside, other=0.0).to(ACC)
    m = tl.load(MASK + t * mask_stride + e // TAPS, mask=inside, other=0.0).to(ACC)
    product = tl.where(m != 0, w * m, 0.0)
    tl.store(OUT + t * SIZE + e, product.to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def masked_weight_pair_kernel(
    WEIGHT1, MASK1, WEIGHT2, MASK2, OUT, weight1_stride, mask1_stride, weight2_stride,
    mask2_stride, SIZE, TAPS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """OUT (T, SIZE) = w1 m1 + w2 m2, of SIZE weights a task, TAPS for each entry of a mask."""
    t = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < SIZE
    w1 = tl.load(WEIGHT1 + t * weight1_stride + e, mask=inside, other=0.0).to(ACC)
    m1 = tl.load(MASK1 + t * mask1_stride + e // TAPS, mask=inside, other=0.0).to(ACC)
    w2 = tl.load(WEIGHT2 + t * weight2_stride + e, mask=inside, other=0.0).to(ACC)
    m2 = tl.load(MASK2 + t * mask2_stride + e // TAPS, mask=inside, other=0.0).to(ACC)
    tl.store(OUT + t * SIZE + e, (w1 * m1 + w2 * m2).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def masked_weight_backward_kernel(
    GRAD, WEIGHT, MASK, WEIGHT_GRAD, MASK_GRAD, grad_stride, weight_stride, mask_stride, KERNELS,
    TAPS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """WEIGHT_GRAD (T, KERNELS TAPS) = g m, MASK_GRAD (T, KERNELS) = the sum over taps of g w."""
    t = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < KERNELS
    m = tl.load(MASK + t * mask_stride + k, mask=inside, other=0.0).to(ACC)
    acc = tl.zeros((BLOCK,), ACC)
    for tap in range(TAPS):
        at = k * TAPS + tap
        g = tl.load(GRAD + t * grad_stride + at, mask=inside, other=0.0).to(ACC)
        w = tl.load(WEIGHT + t * weight_stride + at, mask=inside, other=0.0).to(ACC)
        acc += g * w
        to = WEIGHT_GRAD + t * KERNELS * TAPS + at
        tl.store(to, (g * m).to(WEIGHT_GRAD.dtype.element_ty), mask=inside)
    tl.store(MASK_GRAD + t * KERNELS + k, acc.to(MASK_GRAD.dtype.element_ty), mask=inside)


def masked_weight(weight: Tensor, mask: Tensor, *, block: int = 1024) -> Tensor:
    """weight * mask, (T, O, I, kh, kw); where the mask is 0 the weight is not used, NaN included.

    The tasks share the product where they share both.
    """
    pointers, strides = operands(weight, mask)
    tasks = len(weight) if any(strides) else 1
    out = weight.new_empty(tasks, *weight.shape[1:])
    size, taps = weight[0].numel(), weight.shape[3] * weight.shape[4]
    masked_weight_kernel[(triton.cdiv(size, block), tasks)](
        *pointers, out, *strides, size, taps, block, accumulator(out.dtype)[1]
    )
    return out.expand(weight.shape)


def masked_weight_pair(
    weight1: Tensor, mask1: Tensor, weight2: Tensor, mask2: Tensor, *, block: int = 1024
) -> Tensor:
    """weight1 * mask1 + weight2 * mask2: (T, O, I, kh, kw)."""
    out = weight1.new_empty(weight1.shape)
    pointers, strides = operands(weight1, mask1, weight2, mask2)
    size, taps = weight1[0].numel(), weight1.shape[3] * weight1.shape[4]
    masked_weight_pair_kernel[(triton.cdiv(size, block), len(weight1))](
        *pointers, out, *strides, size, taps, block, accumulator(out.dtype)[1]
    )
    return out


def masked_weight_backward(
    grad: Tensor, weight: Tensor, mask: Tensor, *, block: int = 256
) -> tuple[Tensor, Tensor]:
    """The gradients of <grad, weight * mask>: (T, O, I, kh, kw) and (T, O, I)."""
    weight_grad, mask_grad = grad.new_empty(grad.shape), grad.new_empty(grad.shape[:3])
    pointers, strides = operands(grad, weight, mask)
    kernels, taps = grad[0, :, :, 0, 0].numel(), grad.shape[3] * grad.shape[4]
    masked_weight_backward_kernel[(triton.cdiv(kernels, block), len(grad))](
        *pointers, weight_grad, mask_grad, *strides, kernels, taps, block,
        accumulator(grad.dtype)[1],
    )  # fmt: skip
    return weight_grad, mask_grad
