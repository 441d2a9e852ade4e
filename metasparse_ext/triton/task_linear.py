"""All gradients of the linear layers of tasks in one launch.

Heads of few-shot networks have some classes, some hundred features and few samples: three products
of matrices by a library take longer to start than to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import accumulator, operands

#: More outputs than these do not fit a program.
_OUTPUTS = 128


@triton.jit
def task_linear_backward_kernel(
    GRAD, X, WEIGHT, X_GRAD, WEIGHT_GRAD, BIAS_GRAD, grad_stride, x_stride, weight_stride, N, F, O,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """X_GRAD (T, N, F) = g w, WEIGHT_GRAD (T, O, F) = g' x, BIAS_GRAD (T, O) = the sum of g.

    One program per (block of features, task); the first of a task has the bias, too.
    """
    t = tl.program_id(1).to(tl.int64)
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    o = tl.arange(0, OUTPUTS)
    weights = (o < O)[:, None] & (f < F)[None, :]
    at = o[:, None] * F + f[None, :]
    w = tl.load(WEIGHT + t * weight_stride + at, mask=weights, other=0.0)
    to_weight = tl.zeros((OUTPUTS, BLOCK), ACC)
    to_bias = tl.zeros((OUTPUTS,), ACC)
    for start in range(0, N, ROWS):
        n = start + tl.arange(0, ROWS)
        here = (n < N)[:, None] & (o < O)[None, :]
        g = tl.load(GRAD + t * grad_stride + n[:, None] * O + o[None, :], mask=here, other=0.0)
        inside = (n < N)[:, None] & (f < F)[None, :]
        places = n[:, None] * F + f[None, :]
        x = tl.load(X + t * x_stride + places, mask=inside, other=0.0)
        to_x = tl.dot(g, w, input_precision="ieee", out_dtype=ACC)
        tl.store(X_GRAD + t * N * F + places, to_x.to(X_GRAD.dtype.element_ty), mask=inside)
        to_weight = tl.dot(tl.trans(g), x, to_weight, input_precision="ieee", out_dtype=ACC)
        to_bias += tl.sum(g.to(ACC), 0)
    to = WEIGHT_GRAD + t * O * F + at
    tl.store(to, to_weight.to(WEIGHT_GRAD.dtype.element_ty), mask=weights)
    if tl.program_id(0) == 0:
        tl.store(BIAS_GRAD + t * O + o, to_bias.to(BIAS_GRAD.dtype.element_ty), mask=o < O)


def task_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, block: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of <grad (T, N, O), x weight'> in x, in weight, and in a bias (T, O)."""
    tasks, samples, features = x.shape
    outputs = weight.shape[1]
    if outputs > _OUTPUTS:
        return torch.ops.metasparse_dense.task_linear_backward(grad, x, weight)
    results = x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(weight.shape[:2])
    pointers, strides = operands(grad, x, weight)
    width = max(16, triton.next_power_of_2(outputs))
    task_linear_backward_kernel[(triton.cdiv(features, block), tasks)](
        *pointers, *results, *strides, samples, features, outputs, 32, width, block,
        accumulator(x.dtype)[1],
    )  # fmt: skip
    return results
