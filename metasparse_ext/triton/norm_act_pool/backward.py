"""The gradients of the block in x, weight and bias."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.norm_act_pool.loads import (
    load_back,
    load_grad,
    load_input,
    load_scalar,
    load_through,
    plane_offset,
    zeros,
)
from metasparse_ext.triton.norm_act_pool.plan import Point, launch_at


@triton.jit
def sums_of_grad(GRAD, X, GATE, mean, rstd, outputs, B: tl.constexpr):
    """sum h and sum h xhat, which are the gradients of bias and weight."""
    sum_h, sum_h_xhat = zeros(B), zeros(B)
    for start in range(0, outputs, B.block):
        e = start + tl.arange(0, B.block)
        x, code = load_through(X, GATE, e, outputs, B)
        h = load_grad(GRAD, code, e, outputs, B)
        sum_h += h
        sum_h_xhat += h * ((x - mean) * rstd)
    return tl.sum(sum_h, 0), tl.sum(sum_h_xhat, 0)


@triton.jit
def store_input_grad(
    GRAD, X, GATE, X_GRAD, mean, rstd, scale, mean_h, q_h, inputs, B: tl.constexpr
):  # fmt: skip
    """w X(h), of what passes a gate that comes first."""
    for start in range(0, inputs, B.block):
        e = start + tl.arange(0, B.block)
        h, hit = load_back(GRAD, GATE, e, inputs, B)
        xhat = (load_input(X, e, inputs, B) - mean) * rstd
        g = scale * (h - mean_h - xhat * q_h)
        if not B.norm_first:
            g = tl.where(hit, g, 0.0)
        at = plane_offset(e, B.C, B.INPUT)
        tl.store(X_GRAD + at, g.to(X_GRAD.dtype.element_ty), mask=e < inputs)


@triton.jit
def backward_kernel(
    GRAD, X, WEIGHT, MEAN, RSTD, GATE, X_GRAD, WEIGHT_GRAD, BIAS_GRAD,
    grad_stride, x_stride, weight_stride, mean_stride, rstd_stride, gate_stride, N,
    B: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """B(g) = (w X(h), sum h xhat, sum h)."""
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    GRAD += t * grad_stride + c * B.OUTPUT
    GATE += t * gate_stride + c * B.OUTPUT
    X += t * x_stride + c * B.INPUT
    mean = tl.load(MEAN + t * mean_stride + c).to(B.sums)
    rstd = tl.load(RSTD + t * rstd_stride + c).to(B.sums)
    scale = rstd * load_scalar(WEIGHT, t * weight_stride + c, SCALED, 1.0, B)
    inputs, outputs = N * B.INPUT, N * B.OUTPUT
    count = inputs if B.norm_first else outputs

    sum_h, sum_h_xhat = sums_of_grad(GRAD, X, GATE, mean, rstd, outputs, B)
    tl.store(BIAS_GRAD + t * B.C + c, sum_h.to(BIAS_GRAD.dtype.element_ty))
    tl.store(WEIGHT_GRAD + t * B.C + c, sum_h_xhat.to(WEIGHT_GRAD.dtype.element_ty))
    X_GRAD += (t * N * B.C + c) * B.INPUT
    store_input_grad(
        GRAD, X, GATE, X_GRAD, mean, rstd, scale, sum_h / count, sum_h_xhat / count, inputs, B
    )


def norm_act_pool_backward(
    grad: Tensor, *point: Any, block: int = 1024, warps: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of <grad, y> in x, weight and bias: x's shape, (T, C) and (T, C).

    grad is like y; ``point`` are the fields of a :class:`~.plan.Point`.
    """
    at = Point(*point)
    results = at.x.new_empty(at.x.shape), torch.empty_like(at.mean), torch.empty_like(at.mean)
    launch_at(backward_kernel, at, [grad], results, [], block, warps)
    return results
