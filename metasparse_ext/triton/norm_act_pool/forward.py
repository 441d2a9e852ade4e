"""The block itself: batch statistics, then the result and its gate."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.norm_act_pool.loads import (
    CLOSED,
    load_input,
    load_norm,
    load_scalar,
    load_through,
    plane_offset,
    source_offset,
    zeros,
)
from metasparse_ext.triton.norm_act_pool.plan import Plan, grid, out_shape
from metasparse_ext.triton.operands import operands


@triton.jit
def open_gate(X, e, keep, centre, scale, shift, B: tl.constexpr, RELU: tl.constexpr):
    """pool(relu((x - centre) scale + shift)) at outputs e, and the codes.

    Ties go to the first element; NaN wins, as in PyTorch.
    """
    at = source_offset(e, e * 0, B)
    best = (tl.load(X + at, mask=keep, other=0.0).to(B.sums) - centre) * scale + shift
    code = tl.zeros(at.shape, tl.int32)
    if B.pool:
        for place in tl.static_range(1, 4):
            v = tl.load(X + at + (place // 2 * B.W + place % 2), mask=keep, other=0.0).to(B.sums)
            v = (v - centre) * scale + shift
            better = (v > best) | (v != v)
            best, code = tl.where(better, v, best), tl.where(better, place, code)
    if RELU:
        closed = best <= 0
        best, code = tl.where(closed, 0.0, best), tl.where(closed, CLOSED, code)
    return best, code


@triton.jit
def store_code(GATE, e, code, keep, B: tl.constexpr):
    tl.store(GATE + plane_offset(e, B.C, B.OUTPUT), code.to(tl.uint8), mask=keep)


@triton.jit
def channel_mean(X, GATE, count, B: tl.constexpr, RELU: tl.constexpr):
    """The mean of what the norm sees. A gate that comes first is decided, and stored, here."""
    total = zeros(B)
    for start in range(0, count, B.block):
        e = start + tl.arange(0, B.block)
        if B.gated and not B.norm_first:
            keep = e < count
            v, code = open_gate(X, e, keep, 0.0, 1.0, 0.0, B, RELU)
            v = tl.where(keep, v, 0.0)
            store_code(GATE, e, code, keep, B)
        else:
            v = load_input(X, e, count, B)
        total += v
    return tl.sum(total, 0) / count


@triton.jit
def channel_variance(X, GATE, mean, count, B: tl.constexpr):
    """The mean square from the mean of what the norm sees."""
    total = zeros(B)
    for start in range(0, count, B.block):
        e = start + tl.arange(0, B.block)
        v = load_norm(X, GATE, e, count, B)
        total += tl.where(e < count, (v - mean) * (v - mean), 0.0)
    return tl.sum(total, 0) / count


@triton.jit
def store_result(
    X, GATE, Y, mean, scale, shift, outputs, B: tl.constexpr, RELU: tl.constexpr
):  # fmt: skip
    """y of one channel, and the gate unless it came first."""
    for start in range(0, outputs, B.block):
        e = start + tl.arange(0, B.block)
        keep = e < outputs
        if B.norm_first:
            v, code = open_gate(X, e, keep, mean, scale, shift, B, RELU)
            if B.gated:
                store_code(GATE, e, code, keep, B)
        else:
            v, _ = load_through(X, GATE, e, outputs, B)
            v = (v - mean) * scale + shift
        tl.store(Y + plane_offset(e, B.C, B.OUTPUT), v.to(Y.dtype.element_ty), mask=keep)


@triton.jit
def forward_kernel(
    X, WEIGHT, BIAS, Y, MEAN, RSTD, GATE, x_stride, weight_stride, bias_stride, N,
    B: tl.constexpr, EPS: tl.constexpr, SCALED: tl.constexpr, SHIFTED: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    """One channel of one task: statistics, then the result and its gate."""
    c, t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    X += t * x_stride + c * B.INPUT
    out = (t * N * B.C + c) * B.OUTPUT
    outputs = N * B.OUTPUT
    count = N * B.INPUT if B.norm_first else outputs

    mean = channel_mean(X, GATE + out, count, B, RELU)
    # The codes just written are read back by other threads of this program.
    tl.debug_barrier()
    rstd = 1.0 / tl.sqrt(channel_variance(X, GATE + out, mean, count, B) + EPS)
    tl.store(MEAN + t * B.C + c, mean.to(MEAN.dtype.element_ty))
    tl.store(RSTD + t * B.C + c, rstd.to(RSTD.dtype.element_ty))

    scale = rstd * load_scalar(WEIGHT, t * weight_stride + c, SCALED, 1.0, B)
    shift = load_scalar(BIAS, t * bias_stride + c, SHIFTED, 0.0, B)
    store_result(X, GATE + out, Y + out, mean, scale, shift, outputs, B, RELU)


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
    tasks, samples, channels = x.shape[:3]
    y = x.new_empty(out_shape(x, pool))
    mean, rstd = x.new_empty(tasks, channels), x.new_empty(tasks, channels)
    gate = x.new_empty(y.shape if relu or pool else (tasks, 0), dtype=torch.uint8)
    pointers, strides = operands(x, weight, bias)
    forward_kernel[grid(x)](
        *pointers, y, mean, rstd, gate, *strides, samples,
        Plan.of(x, gate, pool, norm_first, block), eps, weight is not None, bias is not None, relu,
        num_warps=warps,
    )  # fmt: skip
    return y, mean, rstd, gate
