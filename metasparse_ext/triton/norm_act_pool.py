"""Batch norm, ReLU and 2x2 max-pool of a batch of tasks, and the derivatives of the block.

One program has one channel of one task, all its samples and positions: it takes the statistics and
writes the result in one launch, without a barrier and without partial sums in memory. A channel is
read two to four times, from cache in all but the first.

The mathematics is that of csrc/autograd/norm_act_pool.cpp. Which elements pass ReLU and pool is
the gate, one code per output: the place 0..3 of the element in its window (0 without pooling), or 4
where the ReLU is closed (csrc/norm_act_pool_gate.h). Three kinds of loop go over a channel:

    inputs    every element of x;
    outputs   every element of y, looking through the gate at the x it came from;
    norm      what the statistics are taken over: inputs if the norm comes first, else outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import accumulator, operands

CLOSED = tl.constexpr(4)


# ---- one block of elements -----------------------------------------------------------------------


@triton.jit
def plane_offset(e, C: tl.constexpr, PLANE: tl.constexpr):
    """Where element e of a channel lies from the channel's start: planes of samples are C apart."""
    return (e // PLANE).to(tl.int64) * (C * PLANE) + e % PLANE


@triton.jit
def source_offset(
    e, code, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, POOL: tl.constexpr
):  # fmt: skip
    """Where in x the element of place ``code`` of output e lies."""
    if POOL:
        HO: tl.constexpr = H // 2
        WO: tl.constexpr = W // 2
        n, y, x = e // (HO * WO), e // WO % HO, e % WO
        place = (2 * y + code // 2) * W + 2 * x + code % 2
        at = n.to(tl.int64) * (C * H * W) + place
    else:
        at = plane_offset(e, C, H * W)
    return at


@triton.jit
def load_code(GATE, at, keep, GATED: tl.constexpr):
    """The gate's codes; 0, which is open, where nothing is gated."""
    code = tl.zeros(at.shape, tl.int32)
    if GATED:
        code = tl.load(GATE + at, mask=keep, other=4).to(tl.int32)
    return code


@triton.jit
def load_through(
    X, GATE, e, count, ACC: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    POOL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What the gate lets through to outputs e, 0 where it is closed, and the codes."""
    PLANE: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    keep = e < count
    code = load_code(GATE, plane_offset(e, C, PLANE), keep, GATED)
    at = source_offset(e, code, C, H, W, POOL)
    return tl.load(X + at, mask=keep & (code < CLOSED), other=0.0).to(ACC), code


@triton.jit
def load_norm(
    X, GATE, e, count, ACC: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    POOL: tl.constexpr, GATED: tl.constexpr, NORM_FIRST: tl.constexpr,
):  # fmt: skip
    """Elements e of what the norm sees: x itself, or what the gate lets through."""
    if NORM_FIRST:
        v = tl.load(X + plane_offset(e, C, H * W), mask=e < count, other=0.0).to(ACC)
    else:
        v, _ = load_through(X, GATE, e, count, ACC, C, H, W, POOL, GATED)
    return v


@triton.jit
def load_back(
    GRAD, GATE, e, count, ACC: tl.constexpr, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    POOL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """The gradient that the gate sends back to inputs e, 0 where none, and whether one is sent."""
    keep = e < count
    if POOL:
        HO: tl.constexpr = H // 2
        WO: tl.constexpr = W // 2
        n, y, x = e // (H * W), e // W % H, e % W
        place = y % 2 * 2 + x % 2
        at = n.to(tl.int64) * (C * HO * WO) + y // 2 * WO + x // 2
        keep &= (y < 2 * HO) & (x < 2 * WO)  # an odd last row or column is in no window
    else:
        place = 0
        at = plane_offset(e, C, H * W)
    hit = keep & (load_code(GATE, at, keep, GATED) == place)
    return tl.load(GRAD + at, mask=hit, other=0.0).to(ACC), hit


@triton.jit
def open_gate(
    X, at, keep, centre, scale, shift, ACC: tl.constexpr, W: tl.constexpr,
    RELU: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """pool(relu((x - centre) scale + shift)) of the windows that begin at ``at``, and the codes.

    Ties go to the first element; NaN wins, as in PyTorch.
    """
    best = (tl.load(X + at, mask=keep, other=0.0).to(ACC) - centre) * scale + shift
    code = tl.zeros(at.shape, tl.int32)
    if POOL:
        for place in tl.static_range(1, 4):
            v = tl.load(X + at + (place // 2 * W + place % 2), mask=keep, other=0.0).to(ACC)
            v = (v - centre) * scale + shift
            better = (v > best) | (v != v)
            best, code = tl.where(better, v, best), tl.where(better, place, code)
    if RELU:
        closed = best <= 0
        best, code = tl.where(closed, 0.0, best), tl.where(closed, CLOSED, code)
    return best, code


# ---- kernels -------------------------------------------------------------------------------------


@triton.jit
def forward_kernel(
    X, WEIGHT, BIAS, Y, MEAN, RSTD, GATE, x_stride, weight_stride, bias_stride, N,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    EPS: tl.constexpr, SCALED: tl.constexpr, SHIFTED: tl.constexpr, RELU: tl.constexpr,
    POOL: tl.constexpr, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One channel of one task: statistics, then the result and its gate."""
    PLANE: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    X += t * x_stride + c * (H * W)
    out = (t * N * C + c) * PLANE
    GATED: tl.constexpr = RELU or POOL
    outputs = N * PLANE
    count = N * (H * W) if NORM_FIRST else outputs

    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, count, BLOCK):
        e = start + tl.arange(0, BLOCK)
        if GATED and not NORM_FIRST:
            keep = e < count
            v, code = open_gate(
                X, source_offset(e, e * 0, C, H, W, POOL), keep, 0.0, 1.0, 0.0, ACC, W, RELU, POOL
            )
            v = tl.where(keep, v, 0.0)
            at = plane_offset(e, C, PLANE)
            tl.store(GATE + out + at, code.to(tl.uint8), mask=keep)
        else:
            v = load_norm(X, GATE, e, count, ACC, C, H, W, POOL, False, True)
        total += v
    mean = tl.sum(total, 0) / count
    # The codes just written are read back by other threads of this program.
    tl.debug_barrier()

    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, count, BLOCK):
        e = start + tl.arange(0, BLOCK)
        v = load_norm(X, GATE + out, e, count, ACC, C, H, W, POOL, GATED, NORM_FIRST)
        total += tl.where(e < count, (v - mean) * (v - mean), 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(total, 0) / count + EPS)
    tl.store(MEAN + t * C + c, mean.to(MEAN.dtype.element_ty))
    tl.store(RSTD + t * C + c, rstd.to(RSTD.dtype.element_ty))

    scale, shift = rstd, 0.0
    if SCALED:
        scale = rstd * tl.load(WEIGHT + t * weight_stride + c).to(ACC)
    if SHIFTED:
        shift = tl.load(BIAS + t * bias_stride + c).to(ACC)
    for start in range(0, outputs, BLOCK):
        e = start + tl.arange(0, BLOCK)
        keep = e < outputs
        at = plane_offset(e, C, PLANE)
        if NORM_FIRST:
            v, code = open_gate(
                X, source_offset(e, e * 0, C, H, W, POOL), keep, mean, scale, shift, ACC, W, RELU,
                POOL,
            )  # fmt: skip
            if GATED:
                tl.store(GATE + out + at, code.to(tl.uint8), mask=keep)
        else:
            v, _ = load_through(X, GATE + out, e, outputs, ACC, C, H, W, POOL, GATED)
            v = (v - mean) * scale + shift
        tl.store(Y + out + at, v.to(Y.dtype.element_ty), mask=keep)


@triton.jit
def backward_kernel(
    GRAD, X, WEIGHT, MEAN, RSTD, GATE, X_GRAD, WEIGHT_GRAD, BIAS_GRAD,
    grad_stride, x_stride, weight_stride, mean_stride, rstd_stride, gate_stride, N,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SCALED: tl.constexpr, GATED: tl.constexpr,
    POOL: tl.constexpr, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """B(g) = (w X(h), sum h xhat, sum h)."""
    PLANE: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    GRAD += t * grad_stride + c * PLANE
    GATE += t * gate_stride + c * PLANE
    X += t * x_stride + c * (H * W)
    mean = tl.load(MEAN + t * mean_stride + c).to(ACC)
    rstd = tl.load(RSTD + t * rstd_stride + c).to(ACC)
    scale = rstd
    if SCALED:
        scale = rstd * tl.load(WEIGHT + t * weight_stride + c).to(ACC)
    inputs, outputs = N * (H * W), N * PLANE
    count = inputs if NORM_FIRST else outputs

    sum_h, sum_h_xhat = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, outputs, BLOCK):
        e = start + tl.arange(0, BLOCK)
        x, code = load_through(X, GATE, e, outputs, ACC, C, H, W, POOL, GATED)
        h = tl.load(GRAD + plane_offset(e, C, PLANE), mask=e < outputs, other=0.0).to(ACC)
        if NORM_FIRST:
            h = tl.where(code < CLOSED, h, 0.0)
        sum_h += h
        sum_h_xhat += h * ((x - mean) * rstd)
    s1, s2 = tl.sum(sum_h, 0), tl.sum(sum_h_xhat, 0)
    tl.store(BIAS_GRAD + t * C + c, s1.to(BIAS_GRAD.dtype.element_ty))
    tl.store(WEIGHT_GRAD + t * C + c, s2.to(WEIGHT_GRAD.dtype.element_ty))

    X_GRAD += (t * N * C + c) * (H * W)
    for start in range(0, inputs, BLOCK):
        e = start + tl.arange(0, BLOCK)
        keep = e < inputs
        at = plane_offset(e, C, H * W)
        h, hit = load_back(GRAD, GATE, e, inputs, ACC, C, H, W, POOL, GATED)
        xhat = (tl.load(X + at, mask=keep, other=0.0).to(ACC) - mean) * rstd
        g = scale * (h - s1 / count - xhat * (s2 / count))
        if not NORM_FIRST:
            g = tl.where(hit, g, 0.0)
        tl.store(X_GRAD + at, g.to(X_GRAD.dtype.element_ty), mask=keep)


@triton.jit
def direction_moments(
    X, X_DOT, GATE, mean, rstd, count, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    POOL: tl.constexpr, GATED: tl.constexpr, NORM_FIRST: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """mean(v) and q(v) = mean(v xhat) of a direction, over what the norm sees."""
    sum_v, sum_v_xhat = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, count, BLOCK):
        e = start + tl.arange(0, BLOCK)
        x = load_norm(X, GATE, e, count, ACC, C, H, W, POOL, GATED, NORM_FIRST)
        v = load_norm(X_DOT, GATE, e, count, ACC, C, H, W, POOL, GATED, NORM_FIRST)
        sum_v += v
        sum_v_xhat += v * ((x - mean) * rstd)
    return tl.sum(sum_v, 0) / count, tl.sum(sum_v_xhat, 0) / count


@triton.jit
def store_tangent(
    X, X_DOT, GATE, Y_DOT, mean, rstd, mean_v, q_v, scale, weight_dot, bias_dot, outputs,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, POOL: tl.constexpr, GATED: tl.constexpr,
    NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """f'[v] = G (w X(v) + vw xhat + vb), or without the outer G when the gate comes first."""
    PLANE: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    for start in range(0, outputs, BLOCK):
        e = start + tl.arange(0, BLOCK)
        x, code = load_through(X, GATE, e, outputs, ACC, C, H, W, POOL, GATED)
        v, _ = load_through(X_DOT, GATE, e, outputs, ACC, C, H, W, POOL, GATED)
        xhat = (x - mean) * rstd
        y = scale * (v - mean_v - xhat * q_v) + weight_dot * xhat + bias_dot
        if NORM_FIRST:
            y = tl.where(code < CLOSED, y, 0.0)
        tl.store(Y_DOT + plane_offset(e, C, PLANE), y.to(Y_DOT.dtype.element_ty), mask=e < outputs)


@triton.jit
def tangent_kernel(
    X_DOT, WEIGHT_DOT, BIAS_DOT, X, WEIGHT, MEAN, RSTD, GATE, Y_DOT,
    x_dot_stride, weight_dot_stride, bias_dot_stride, x_stride, weight_stride, mean_stride,
    rstd_stride, gate_stride, N,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    WEIGHT_MOVES: tl.constexpr, BIAS_MOVES: tl.constexpr, SCALED: tl.constexpr,
    GATED: tl.constexpr, POOL: tl.constexpr, NORM_FIRST: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The derivative of the block in the direction v = (x_dot, weight_dot, bias_dot)."""
    PLANE: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    GATE += t * gate_stride + c * PLANE
    X += t * x_stride + c * (H * W)
    X_DOT += t * x_dot_stride + c * (H * W)
    mean = tl.load(MEAN + t * mean_stride + c).to(ACC)
    rstd = tl.load(RSTD + t * rstd_stride + c).to(ACC)
    scale, weight_dot, bias_dot = rstd, 0.0, 0.0
    if SCALED:
        scale = rstd * tl.load(WEIGHT + t * weight_stride + c).to(ACC)
    if WEIGHT_MOVES:
        weight_dot = tl.load(WEIGHT_DOT + t * weight_dot_stride + c).to(ACC)
    if BIAS_MOVES:
        bias_dot = tl.load(BIAS_DOT + t * bias_dot_stride + c).to(ACC)
    outputs = N * PLANE
    count = N * (H * W) if NORM_FIRST else outputs
    mean_v, q_v = direction_moments(
        X, X_DOT, GATE, mean, rstd, count, C, H, W, POOL, GATED, NORM_FIRST, BLOCK, ACC
    )
    store_tangent(
        X, X_DOT, GATE, Y_DOT + (t * N * C + c) * PLANE, mean, rstd, mean_v, q_v, scale,
        weight_dot, bias_dot, outputs, C, H, W, POOL, GATED, NORM_FIRST, BLOCK, ACC,
    )  # fmt: skip


@triton.jit
def double_backward_kernel(
    X_DOT, WEIGHT_DOT, BIAS_DOT, GRAD, X, WEIGHT, MEAN, RSTD, GATE, Y_DOT, X_GRAD, WEIGHT_GRAD,
    x_dot_stride, weight_dot_stride, bias_dot_stride, grad_stride, x_stride, weight_stride,
    mean_stride, rstd_stride, gate_stride, N,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    WEIGHT_MOVES: tl.constexpr, BIAS_MOVES: tl.constexpr, SCALED: tl.constexpr,
    GATED: tl.constexpr, POOL: tl.constexpr, NORM_FIRST: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """f'[v] and H(v; g) = (w X(h, v) + vw X(h), sum h X(v)), X(h, v) being

    -rstd (q(v) X(h) + q(h) X(v) + s xhat),  s = mean(h X(v)).
    """
    PLANE: tl.constexpr = (H // 2) * (W // 2) if POOL else H * W
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    GRAD += t * grad_stride + c * PLANE
    GATE += t * gate_stride + c * PLANE
    X += t * x_stride + c * (H * W)
    X_DOT += t * x_dot_stride + c * (H * W)
    mean = tl.load(MEAN + t * mean_stride + c).to(ACC)
    rstd = tl.load(RSTD + t * rstd_stride + c).to(ACC)
    weight, weight_dot, bias_dot = 1.0, 0.0, 0.0
    if SCALED:
        weight = tl.load(WEIGHT + t * weight_stride + c).to(ACC)
    if WEIGHT_MOVES:
        weight_dot = tl.load(WEIGHT_DOT + t * weight_dot_stride + c).to(ACC)
    if BIAS_MOVES:
        bias_dot = tl.load(BIAS_DOT + t * bias_dot_stride + c).to(ACC)
    inputs, outputs = N * (H * W), N * PLANE
    count = inputs if NORM_FIRST else outputs
    mean_v, q_v = direction_moments(
        X, X_DOT, GATE, mean, rstd, count, C, H, W, POOL, GATED, NORM_FIRST, BLOCK, ACC
    )
    store_tangent(
        X, X_DOT, GATE, Y_DOT + (t * N * C + c) * PLANE, mean, rstd, mean_v, q_v, weight * rstd,
        weight_dot, bias_dot, outputs, C, H, W, POOL, GATED, NORM_FIRST, BLOCK, ACC,
    )  # fmt: skip

    sum_h, sum_h_xhat = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    sum_h_xv = tl.zeros((BLOCK,), ACC)
    for start in range(0, outputs, BLOCK):
        e = start + tl.arange(0, BLOCK)
        x, code = load_through(X, GATE, e, outputs, ACC, C, H, W, POOL, GATED)
        v, _ = load_through(X_DOT, GATE, e, outputs, ACC, C, H, W, POOL, GATED)
        h = tl.load(GRAD + plane_offset(e, C, PLANE), mask=e < outputs, other=0.0).to(ACC)
        if NORM_FIRST:
            h = tl.where(code < CLOSED, h, 0.0)
        xhat = (x - mean) * rstd
        sum_h += h
        sum_h_xhat += h * xhat
        sum_h_xv += h * (rstd * (v - mean_v - xhat * q_v))
    mean_h, q_h = tl.sum(sum_h, 0) / count, tl.sum(sum_h_xhat, 0) / count
    h_xv = tl.sum(sum_h_xv, 0)
    tl.store(WEIGHT_GRAD + t * C + c, h_xv.to(WEIGHT_GRAD.dtype.element_ty))

    X_GRAD += (t * N * C + c) * (H * W)
    for start in range(0, inputs, BLOCK):
        e = start + tl.arange(0, BLOCK)
        keep = e < inputs
        at = plane_offset(e, C, H * W)
        h, hit = load_back(GRAD, GATE, e, inputs, ACC, C, H, W, POOL, GATED)
        xhat = (tl.load(X + at, mask=keep, other=0.0).to(ACC) - mean) * rstd
        v = tl.load(X_DOT + at, mask=keep, other=0.0).to(ACC)
        xh = rstd * (h - mean_h - xhat * q_h)
        xv = rstd * (v - mean_v - xhat * q_v)
        xhv = -rstd * (q_v * xh + q_h * xv + (h_xv / count) * xhat)
        g = weight * xhv + weight_dot * xh
        if not NORM_FIRST:
            g = tl.where(hit, g, 0.0)
        tl.store(X_GRAD + at, g.to(X_GRAD.dtype.element_ty), mask=keep)


# ---- launchers -----------------------------------------------------------------------------------


def _out_shape(x: Tensor, pool: bool) -> tuple[int, ...]:
    return (*x.shape[:3], *(size // 2 if pool else size for size in x.shape[3:]))


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[0]


def norm_act_pool(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
    pool: bool,
    norm_first: bool,
    *,
    block: int = 1024,
    warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The block: y, and what its derivatives need.

    Args:
        x: (T, N, C, H, W), float64, float32, bfloat16 or float16, any strides.
        weight, bias: (T, C) or None.
        eps: Added to the variance.
        relu, pool: Whether there is a ReLU, and a 2x2 max-pool.
        norm_first: Whether the norm comes before them.
        block: Elements a program has in hand at a time.
        warps: Warps of a program.

    Returns:
        y (T, N, C, H', W'), mean and 1/std (T, C), and the gate: uint8 of y's shape, or (T, 0)
        when there is neither ReLU nor pool.
    """
    tasks, samples, channels, height, width = x.shape
    y = x.new_empty(_out_shape(x, pool))
    mean, rstd = x.new_empty(tasks, channels), x.new_empty(tasks, channels)
    gate = x.new_empty(y.shape if relu or pool else (tasks, 0), dtype=torch.uint8)
    pointers, strides = operands(x, weight, bias)
    forward_kernel[_grid(x)](
        *pointers, y, mean, rstd, gate, *strides, samples, channels, height, width, eps,
        weight is not None, bias is not None, relu, pool, norm_first, block,
        accumulator(x.dtype)[1], num_warps=warps,
    )  # fmt: skip
    return y, mean, rstd, gate


def norm_act_pool_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gate: Tensor,
    eps: float,
    pool: bool,
    norm_first: bool,
    *,
    block: int = 1024,
    warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of <grad, y> in x, weight and bias.

    Args:
        grad: Like y; x, weight as for :func:`norm_act_pool`; mean, rstd, gate as it returned them.
        eps: Unused: rstd holds it.

    Returns:
        Gradients of x's shape, (T, C) and (T, C).
    """
    samples, channels, height, width = x.shape[1:]
    x_grad = x.new_empty(x.shape)
    weight_grad, bias_grad = torch.empty_like(mean), torch.empty_like(mean)
    pointers, strides = operands(grad, x, weight, mean, rstd, gate)
    backward_kernel[_grid(x)](
        *pointers, x_grad, weight_grad, bias_grad, *strides, samples, channels, height, width,
        weight is not None, gate.dim() == 5, pool, norm_first, block, accumulator(x.dtype)[1],
        num_warps=warps,
    )  # fmt: skip
    return x_grad, weight_grad, bias_grad


def norm_act_pool_tangent(
    x_dot: Tensor,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gate: Tensor,
    eps: float,
    pool: bool,
    norm_first: bool,
    *,
    block: int = 1024,
    warps: int = 4,
) -> Tensor:
    """The derivative of y in the direction (x_dot, weight_dot, bias_dot), of y's shape."""
    samples, channels, height, width = x.shape[1:]
    y_dot = x.new_empty(_out_shape(x, pool))
    pointers, strides = operands(x_dot, weight_dot, bias_dot, x, weight, mean, rstd, gate)
    tangent_kernel[_grid(x)](
        *pointers, y_dot, *strides, samples, channels, height, width,
        weight_dot is not None, bias_dot is not None, weight is not None, gate.dim() == 5, pool,
        norm_first, block, accumulator(x.dtype)[1], num_warps=warps,
    )  # fmt: skip
    return y_dot


def norm_act_pool_double_backward(
    x_dot: Tensor,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    gate: Tensor,
    eps: float,
    pool: bool,
    norm_first: bool,
    *,
    block: int = 1024,
    warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """y_dot, and the gradients of <grad, y_dot> in x and weight: y's shape, x's shape, (T, C)."""
    samples, channels, height, width = x.shape[1:]
    y_dot, x_grad = x.new_empty(_out_shape(x, pool)), x.new_empty(x.shape)
    weight_grad = torch.empty_like(mean)
    pointers, strides = operands(x_dot, weight_dot, bias_dot, grad, x, weight, mean, rstd, gate)
    double_backward_kernel[_grid(x)](
        *pointers, y_dot, x_grad, weight_grad, *strides, samples, channels, height, width,
        weight_dot is not None, bias_dot is not None, weight is not None, gate.dim() == 5, pool,
        norm_first, block, accumulator(x.dtype)[1], num_warps=warps,
    )  # fmt: skip
    return y_dot, x_grad, weight_grad
