"""The derivative of the block in a direction v = (x_dot, weight_dot, bias_dot)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.norm_act_pool.loads import (
    CLOSED,
    load_norm,
    load_scalar,
    load_through,
    plane_offset,
    zeros,
)
from metasparse_ext.triton.norm_act_pool.plan import Point, launch_at, out_shape


@triton.jit
def direction_moments(X, X_DOT, GATE, mean, rstd, count, B: tl.constexpr):
    """mean(v) and q(v) = mean(v xhat) of a direction, over what the norm sees."""
    sum_v, sum_v_xhat = zeros(B), zeros(B)
    for start in range(0, count, B.block):
        e = start + tl.arange(0, B.block)
        x = load_norm(X, GATE, e, count, B)
        v = load_norm(X_DOT, GATE, e, count, B)
        sum_v += v
        sum_v_xhat += v * ((x - mean) * rstd)
    return tl.sum(sum_v, 0) / count, tl.sum(sum_v_xhat, 0) / count


@triton.jit
def store_tangent(
    X, X_DOT, GATE, Y_DOT, mean, rstd, mean_v, q_v, scale, weight_dot, bias_dot, outputs,
    B: tl.constexpr,
):  # fmt: skip
    """f'[v] = G (w X(v) + vw xhat + vb), or without the outer G when the gate comes first."""
    for start in range(0, outputs, B.block):
        e = start + tl.arange(0, B.block)
        x, code = load_through(X, GATE, e, outputs, B)
        v, _ = load_through(X_DOT, GATE, e, outputs, B)
        xhat = (x - mean) * rstd
        y = scale * (v - mean_v - xhat * q_v) + weight_dot * xhat + bias_dot
        if B.norm_first:
            y = tl.where(code < CLOSED, y, 0.0)
        at = plane_offset(e, B.C, B.OUTPUT)
        tl.store(Y_DOT + at, y.to(Y_DOT.dtype.element_ty), mask=e < outputs)


@triton.jit
def tangent_kernel(
    X_DOT, WEIGHT_DOT, BIAS_DOT, X, WEIGHT, MEAN, RSTD, GATE, Y_DOT,
    x_dot_stride, weight_dot_stride, bias_dot_stride, x_stride, weight_stride, mean_stride,
    rstd_stride, gate_stride, N,
    B: tl.constexpr, WEIGHT_MOVES: tl.constexpr, BIAS_MOVES: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """f'[v] of one channel of one task."""
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    GATE += t * gate_stride + c * B.OUTPUT
    X += t * x_stride + c * B.INPUT
    X_DOT += t * x_dot_stride + c * B.INPUT
    mean = tl.load(MEAN + t * mean_stride + c).to(B.sums)
    rstd = tl.load(RSTD + t * rstd_stride + c).to(B.sums)
    weight = load_scalar(WEIGHT, t * weight_stride + c, SCALED, 1.0, B)
    weight_dot = load_scalar(WEIGHT_DOT, t * weight_dot_stride + c, WEIGHT_MOVES, 0.0, B)
    bias_dot = load_scalar(BIAS_DOT, t * bias_dot_stride + c, BIAS_MOVES, 0.0, B)
    outputs = N * B.OUTPUT
    count = N * B.INPUT if B.norm_first else outputs
    mean_v, q_v = direction_moments(X, X_DOT, GATE, mean, rstd, count, B)
    store_tangent(
        X, X_DOT, GATE, Y_DOT + (t * N * B.C + c) * B.OUTPUT, mean, rstd, mean_v, q_v,
        weight * rstd, weight_dot, bias_dot, outputs, B,
    )  # fmt: skip


def norm_act_pool_tangent(
    x_dot: Tensor,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    *point: Any,
    block: int = 1024,
    warps: int = 4,
) -> Tensor:
    """The derivative of y in the direction (x_dot, weight_dot, bias_dot), of y's shape.

    Args:
        x_dot, weight_dot, bias_dot: Like x, weight and bias; None for no direction of theirs.
        point: The fields of a :class:`~.plan.Point`.
        block: Elements a program has in hand at a time.
        warps: Warps of a program.
    """
    at = Point(*point)
    y_dot = at.x.new_empty(out_shape(at.x, at.pool))
    moves = [weight_dot is not None, bias_dot is not None]
    launch_at(tangent_kernel, at, [x_dot, weight_dot, bias_dot], [y_dot], moves, block, warps)
    return y_dot
