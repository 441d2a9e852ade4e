"""The cross-entropy of tasks and its two derivatives: a program has one task, a launch each."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import accumulator, operands

#: Logits that a program has in hand at a time.
_BLOCK = 2048


@triton.jit
def softmax_of(LOGITS, n, N, C, CLASSES: tl.constexpr, ACC: tl.constexpr):
    """Of samples n (b,): log-probabilities (b, CLASSES); -inf beyond the classes."""
    c = tl.arange(0, CLASSES)
    inside = (n < N)[:, None] & (c < C)[None, :]
    z = tl.load(LOGITS + n[:, None] * C + c[None, :], mask=inside, other=0.0).to(ACC)
    z = tl.where((c < C)[None, :], z, float("-inf"))
    z -= tl.max(z, 1)[:, None]
    return z - tl.log(tl.sum(tl.exp(z), 1))[:, None]


@triton.jit
def labels_of(LABELS, n, N, C, ACC: tl.constexpr):
    """Labels (b,), and 0 for each, or NaN where a label is no class."""
    label = tl.load(LABELS + n, mask=n < N, other=0)
    wrong = (label < 0) | (label >= C)
    return label, tl.where(wrong, float("nan"), 0.0).to(ACC)


@triton.jit
def task_cross_entropy_kernel(
    LOGITS, LABELS, LOSS, logits_stride, labels_stride, N, C, ROWS: tl.constexpr,
    CLASSES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """LOSS (T,): the mean over N samples."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CLASSES)
    acc = tl.zeros((ROWS,), ACC)
    for start in range(0, N, ROWS):
        n = start + tl.arange(0, ROWS)
        logs = softmax_of(LOGITS + t * logits_stride, n, N, C, CLASSES, ACC)
        label, wrong = labels_of(LABELS + t * labels_stride, n, N, C, ACC)
        chosen = tl.sum(tl.where(c[None, :] == label[:, None], logs, 0.0), 1)
        acc += tl.where(n < N, wrong - chosen, 0.0)
    tl.store(LOSS + t, (tl.sum(acc, 0) / N).to(LOSS.dtype.element_ty))


@triton.jit
def task_cross_entropy_backward_kernel(
    GRAD, LOGITS, LABELS, OUT, grad_stride, logits_stride, labels_stride, N, C,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """OUT (T, N, C) = g / N (p - e)."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CLASSES)
    each = tl.load(GRAD + t * grad_stride).to(ACC) / N
    for start in range(0, N, ROWS):
        n = start + tl.arange(0, ROWS)
        p = tl.exp(softmax_of(LOGITS + t * logits_stride, n, N, C, CLASSES, ACC))
        label, wrong = labels_of(LABELS + t * labels_stride, n, N, C, ACC)
        slope = p - (c[None, :] == label[:, None]).to(ACC) + wrong[:, None]
        to = OUT + t * N * C + n[:, None] * C + c[None, :]
        inside = (n < N)[:, None] & (c < C)[None, :]
        tl.store(to, (each * slope).to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def task_cross_entropy_double_backward_kernel(
    DIRECTION, GRAD, LOGITS, LABELS, GRAD_DOT, OUT, direction_stride, grad_stride, logits_stride,
    labels_stride, N, C, ROWS: tl.constexpr, CLASSES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """GRAD_DOT (T,) = the sum of v (p - e) / N; OUT (T, N, C) = g / N p (v - <p, v>)."""
    t = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, CLASSES)
    each = tl.load(GRAD + t * grad_stride).to(ACC) / N
    acc = tl.zeros((ROWS,), ACC)
    for start in range(0, N, ROWS):
        n = start + tl.arange(0, ROWS)
        p = tl.exp(softmax_of(LOGITS + t * logits_stride, n, N, C, CLASSES, ACC))
        label, wrong = labels_of(LABELS + t * labels_stride, n, N, C, ACC)
        inside = (n < N)[:, None] & (c < C)[None, :]
        at = n[:, None] * C + c[None, :]
        v = tl.load(DIRECTION + t * direction_stride + at, mask=inside, other=0.0).to(ACC)
        average = tl.sum(p * v, 1)
        slope = each * p * (v - average[:, None])
        tl.store(OUT + t * N * C + at, slope.to(OUT.dtype.element_ty), mask=inside)
        chosen = tl.sum(tl.where(c[None, :] == label[:, None], v, 0.0), 1)
        acc += tl.where(n < N, average - chosen + wrong, 0.0)
    tl.store(GRAD_DOT + t, (tl.sum(acc, 0) / N).to(GRAD_DOT.dtype.element_ty))


def _sizes(logits: Tensor) -> tuple:
    """N, C, and how a program goes over them."""
    _, samples, classes = logits.shape
    width = triton.next_power_of_2(classes)
    rows = min(triton.next_power_of_2(samples), max(1, _BLOCK // width))
    return samples, classes, rows, width, accumulator(logits.dtype)[1]


def task_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(T,), of logits (T, N, C) and labels (T, N)."""
    losses = logits.new_empty(len(logits))
    pointers, strides = operands(logits, labels)
    task_cross_entropy_kernel[(len(logits),)](*pointers, losses, *strides, *_sizes(logits))
    return losses


def task_cross_entropy_backward(grad: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient in logits (T, N, C), with grad (T,)."""
    out = logits.new_empty(logits.shape)
    pointers, strides = operands(grad, logits, labels)
    task_cross_entropy_backward_kernel[(len(logits),)](*pointers, out, *strides, *_sizes(logits))
    return out


def task_cross_entropy_double_backward(
    direction: Tensor, grad: Tensor, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of <direction, backward> in grad (T,) and in logits (T, N, C)."""
    grad_dot, out = logits.new_empty(len(logits)), logits.new_empty(logits.shape)
    pointers, strides = operands(direction, grad, logits, labels)
    task_cross_entropy_double_backward_kernel[(len(logits),)](
        *pointers, grad_dot, out, *strides, *_sizes(logits)
    )
    return grad_dot, out
