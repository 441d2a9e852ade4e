"""Gates that open by a score, their gradients, and the gradient of a budget on them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import accumulator, operands


@triton.jit
def logistic_of(s):
    """1 / (1 + exp(-s))."""
    return 1 / (1 + tl.exp(-s))


@triton.jit
def score_gate_kernel(SCORES, MASK, stride, SIZE, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """MASK (T, SIZE): whether the logistic of a score exceeds one half, as zeros and ones."""
    t = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.load(SCORES + t * stride + e, mask=e < SIZE, other=0.0).to(ACC)
    is_open = (logistic_of(s) > 0.5).to(MASK.dtype.element_ty)
    tl.store(MASK + t * SIZE + e, is_open, mask=e < SIZE)


@triton.jit
def score_gate_grad_kernel(
    GRAD, FACTOR, SCORES, OUT, grad_stride, factor_stride, scores_stride, SIZE,
    HAS_FACTOR: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """OUT (T, SIZE) = grad factor y (1 - y), times 1 - 2 y if SECOND, y the logistic of scores."""
    t = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < SIZE
    y = logistic_of(tl.load(SCORES + t * scores_stride + e, mask=inside, other=0.0).to(ACC))
    g = tl.load(GRAD + t * grad_stride + e, mask=inside, other=0.0).to(ACC)
    if HAS_FACTOR:
        g *= tl.load(FACTOR + t * factor_stride + e, mask=inside, other=0.0).to(ACC)
    slope = (1 - y) * y
    if SECOND:
        slope *= 1 - 2 * y
    tl.store(OUT + t * SIZE + e, (g * slope).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def add_budget_gradient_kernel(
    GRADIENT, SCORES, OFFSET, SHARE, gradient_stride, scores_stride, l1, SIZE,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """GRADIENT (T, SIZE) += y (1 - y) (offset + share open) + l1 sign(scores).

    Every program counts the open gates of its whole task: they are read from cache, and no second
    launch has to wait for the sum.
    """
    t = tl.program_id(1).to(tl.int64)
    SCORES += t * scores_stride
    open_gates = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        s = tl.load(SCORES + e, mask=e < SIZE, other=0.0).to(ACC)
        open_gates += (logistic_of(s) > 0.5).to(tl.int32)
    count = tl.sum(open_gates, 0).to(ACC)
    slope = tl.load(OFFSET).to(ACC) + tl.load(SHARE).to(ACC) * count
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.load(SCORES + e, mask=e < SIZE, other=0.0).to(ACC)
    y = logistic_of(s)
    sign = (s > 0).to(ACC) - (s < 0).to(ACC)
    GRADIENT += t * gradient_stride
    g = tl.load(GRADIENT + e, mask=e < SIZE, other=0.0).to(ACC)
    g += slope * ((1 - y) * y) + l1 * sign
    tl.store(GRADIENT + e, g.to(GRADIENT.dtype.element_ty), mask=e < SIZE)


def score_gate(scores: Tensor, *, block: int = 1024) -> Tensor:
    """Zeros and ones of the shape of scores (T, ...)."""
    mask = torch.empty_like(scores, memory_format=torch.contiguous_format)
    (pointer,), (stride,) = operands(scores)
    size = scores[0].numel()
    score_gate_kernel[(triton.cdiv(size, block), len(scores))](
        pointer, mask, stride, size, block, accumulator(scores.dtype)[1]
    )
    return mask


def score_gate_grad(
    grad: Tensor, factor: Tensor | None, scores: Tensor, order: int, *, block: int = 1024
) -> Tensor:
    """grad * factor * logistic^(order)(scores), for orders 1 and 2; above, PyTorch's operators."""
    if order > 2:
        return torch.ops.metasparse_dense.score_gate_grad(grad, factor, scores, order)
    out = torch.empty_like(scores, memory_format=torch.contiguous_format)
    pointers, strides = operands(grad, factor, scores)
    size = scores[0].numel()
    score_gate_grad_kernel[(triton.cdiv(size, block), len(scores))](
        *pointers, out, *strides, size, factor is not None, order == 2, block,
        accumulator(scores.dtype)[1],
    )  # fmt: skip
    return out


def add_budget_gradient(
    gradient: Tensor, scores: Tensor, offset: Tensor, share: Tensor, l1: float, *, block: int = 1024
) -> None:
    """Adds to gradient (T, K), whose rows are contiguous, in place."""
    (pointer,), (stride,) = operands(scores)
    tasks, size = scores.shape
    add_budget_gradient_kernel[(triton.cdiv(size, block), tasks)](
        gradient, pointer, offset, share, gradient.stride(0), stride, l1, size, block,
        accumulator(scores.dtype)[1],
    )  # fmt: skip
