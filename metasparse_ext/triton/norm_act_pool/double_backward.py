"""The derivative of the block in a direction, and the gradients of <grad, that derivative>."""

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
from metasparse_ext.triton.norm_act_pool.plan import Point, launch_at, out_shape
from metasparse_ext.triton.norm_act_pool.tangent import direction_moments, store_tangent


@triton.jit
def sums_with_direction(GRAD, X, X_DOT, GATE, mean, rstd, mean_v, q_v, outputs, B: tl.constexpr):
    """sum h, sum h xhat and sum h X(v)."""
    sum_h, sum_h_xhat = zeros(B), zeros(B)
    sum_h_xv = zeros(B)
    for start in range(0, outputs, B.block):
        e = start + tl.arange(0, B.block)
        x, code = load_through(X, GATE, e, outputs, B)
        v, _ = load_through(X_DOT, GATE, e, outputs, B)
        h = load_grad(GRAD, code, e, outputs, B)
        xhat = (x - mean) * rstd
        sum_h += h
        sum_h_xhat += h * xhat
        sum_h_xv += h * (rstd * (v - mean_v - xhat * q_v))
    return tl.sum(sum_h, 0), tl.sum(sum_h_xhat, 0), tl.sum(sum_h_xv, 0)


@triton.jit
def store_second_input_grad(
    GRAD, X, X_DOT, GATE, X_GRAD, mean, rstd, mean_v, q_v, mean_h, q_h, s, weight, weight_dot,
    inputs, B: tl.constexpr,
):  # fmt: skip
    """w X(h, v) + vw X(h), of what passes a gate that comes first."""
    for start in range(0, inputs, B.block):
        e = start + tl.arange(0, B.block)
        h, hit = load_back(GRAD, GATE, e, inputs, B)
        xhat = (load_input(X, e, inputs, B) - mean) * rstd
        v = load_input(X_DOT, e, inputs, B)
        xh = rstd * (h - mean_h - xhat * q_h)
        xv = rstd * (v - mean_v - xhat * q_v)
        xhv = -rstd * (q_v * xh + q_h * xv + s * xhat)
        g = weight * xhv + weight_dot * xh
        if not B.norm_first:
            g = tl.where(hit, g, 0.0)
        at = plane_offset(e, B.C, B.INPUT)
        tl.store(X_GRAD + at, g.to(X_GRAD.dtype.element_ty), mask=e < inputs)


@triton.jit
def double_backward_kernel(
    X_DOT, WEIGHT_DOT, BIAS_DOT, GRAD, X, WEIGHT, MEAN, RSTD, GATE, Y_DOT, X_GRAD, WEIGHT_GRAD,
    x_dot_stride, weight_dot_stride, bias_dot_stride, grad_stride, x_stride, weight_stride,
    mean_stride, rstd_stride, gate_stride, N,
    B: tl.constexpr, WEIGHT_MOVES: tl.constexpr, BIAS_MOVES: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """f'[v] and H(v; g) = (w X(h, v) + vw X(h), sum h X(v)), X(h, v) being

    -rstd (q(v) X(h) + q(h) X(v) + s xhat),  s = mean(h X(v)).
    """
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    GRAD += t * grad_stride + c * B.OUTPUT
    GATE += t * gate_stride + c * B.OUTPUT
    X += t * x_stride + c * B.INPUT
    X_DOT += t * x_dot_stride + c * B.INPUT
    mean = tl.load(MEAN + t * mean_stride + c).to(B.sums)
    rstd = tl.load(RSTD + t * rstd_stride + c).to(B.sums)
    weight = load_scalar(WEIGHT, t * weight_stride + c, SCALED, 1.0, B)
    weight_dot = load_scalar(WEIGHT_DOT, t * weight_dot_stride + c, WEIGHT_MOVES, 0.0, B)
    bias_dot = load_scalar(BIAS_DOT, t * bias_dot_stride + c, BIAS_MOVES, 0.0, B)
    inputs, outputs = N * B.INPUT, N * B.OUTPUT
    count = inputs if B.norm_first else outputs

    mean_v, q_v = direction_moments(X, X_DOT, GATE, mean, rstd, count, B)
    store_tangent(
        X, X_DOT, GATE, Y_DOT + (t * N * B.C + c) * B.OUTPUT, mean, rstd, mean_v, q_v,
        weight * rstd, weight_dot, bias_dot, outputs, B,
    )  # fmt: skip
    sum_h, sum_h_xhat, sum_h_xv = sums_with_direction(
        GRAD, X, X_DOT, GATE, mean, rstd, mean_v, q_v, outputs, B
    )
    tl.store(WEIGHT_GRAD + t * B.C + c, sum_h_xv.to(WEIGHT_GRAD.dtype.element_ty))
    store_second_input_grad(
        GRAD, X, X_DOT, GATE, X_GRAD + (t * N * B.C + c) * B.INPUT, mean, rstd, mean_v, q_v,
        sum_h / count, sum_h_xhat / count, sum_h_xv / count, weight, weight_dot, inputs, B,
    )  # fmt: skip


def norm_act_pool_double_backward(
    x_dot: Tensor,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    grad: Tensor,
    *point: Any,
    block: int = 1024,
    warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """y_dot, and the gradients of <grad, y_dot> in x and weight: y's shape, x's shape, (T, C).

    Arguments as for :func:`~metasparse_ext.triton.norm_act_pool.norm_act_pool_tangent`.
    """
    at = Point(*point)
    y_dot, x_grad = at.x.new_empty(out_shape(at.x, at.pool)), at.x.new_empty(at.x.shape)
    results = y_dot, x_grad, torch.empty_like(at.mean)
    moves = [weight_dot is not None, bias_dot is not None]
    directions = [x_dot, weight_dot, bias_dot]
    launch_at(double_backward_kernel, at, [*directions, grad], results, moves, block, warps)
    return results
