"""One step of conjugate gradients for T systems: three launches, no host read, no atomics.

The step needs two sums over each task's vector, and each must be complete before anybody goes on.
Every launch ends in one partial sum per program; the programs of the next launch all add the same
partials in the same order, so they agree on every scalar without waiting for each other.

    dots      p'q, p'p, q'q
    advance   x += alpha p, r -= alpha q; r'Mr, r'r
    turn      p = M r + beta p; the task's scalars

Only the last launch writes the tasks' states, and nobody reads them there: what it needs of them,
``advance`` has left in a buffer of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.reference import cg as reference
from metasparse_ext.triton.operands import operands

CONVERGED = tl.constexpr(reference.CONVERGED)
RUNNING = tl.constexpr(reference.RUNNING)
NOT_POSITIVE = tl.constexpr(reference.NOT_POSITIVE)
NOT_FINITE = tl.constexpr(reference.NOT_FINITE)


@triton.jit
def is_finite(x):
    return x - x == 0


@triton.jit
def add_parts(PARTS, parts, BP: tl.constexpr):
    """The sum of ``parts`` numbers, in one order whoever adds them."""
    j = tl.arange(0, BP)
    return tl.sum(tl.load(PARTS + j, mask=j < parts, other=0.0), 0)


@triton.jit
def dots_kernel(
    P, Q, PARTS, p_stride, q_stride, SIZE, BLOCK: tl.constexpr, STEPS: tl.constexpr
):  # fmt: skip
    """PARTS (T, 3, parts) float64: this program's share of p'q, p'p and q'q."""
    part, t, parts = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    P += t * p_stride
    Q += t * q_stride
    pq, pp, qq = (
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
        tl.zeros((BLOCK,), tl.float64),
    )
    for step in range(STEPS):
        e = (part.to(tl.int64) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        p = tl.load(P + e, mask=e < SIZE, other=0.0).to(tl.float64)
        q = tl.load(Q + e, mask=e < SIZE, other=0.0).to(tl.float64)
        pq += p * q
        pp += p * p
        qq += q * q
    at = t * 3 * parts + part
    tl.store(PARTS + at, tl.sum(pq, 0))
    tl.store(PARTS + at + parts, tl.sum(pp, 0))
    tl.store(PARTS + at + 2 * parts, tl.sum(qq, 0))


@triton.jit
def advance_kernel(
    X, R, P, Q, M, RZ, STATUS, DOTS, PARTS, STEP, x_stride, r_stride, p_stride, q_stride, m_stride,
    SIZE, PRECONDITIONED: tl.constexpr, ROUNDING: tl.constexpr, BLOCK: tl.constexpr,
    STEPS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """x += alpha p and r -= alpha q in the tasks that step; PARTS (T, 2, parts): r'Mr and r'r.

    STEP (T, 2) float64: the outcome so far, RUNNING for a task that steps and -1 for one that was
    not running; and the r'Mr of before.
    """
    part, t, parts = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    DOTS += t * 3 * parts
    curvature = add_parts(DOTS, parts, BP)
    pp, qq = add_parts(DOTS + parts, parts, BP), add_parts(DOTS + 2 * parts, parts, BP)
    # Below the rounding of p'Ap a direction cannot be told from one in the null space.
    positive = curvature > ROUNDING * tl.sqrt(pp * qq)
    outcome = tl.where(positive, RUNNING, NOT_POSITIVE)
    outcome = tl.where(is_finite(curvature), outcome, NOT_FINITE)
    outcome = tl.where(tl.load(STATUS + t) == RUNNING, outcome, -1)
    rz = tl.load(RZ + t)
    if part == 0:
        tl.store(STEP + 2 * t, outcome.to(tl.float64))
        tl.store(STEP + 2 * t + 1, rz)
    if outcome == RUNNING:
        alpha = (rz / curvature).to(X.dtype.element_ty)
        new_rz, new_rr = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
        for step in range(STEPS):
            e = (part.to(tl.int64) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
            inside = e < SIZE
            p = tl.load(P + t * p_stride + e, mask=inside, other=0.0)
            x = tl.load(X + t * x_stride + e, mask=inside, other=0.0) + alpha * p
            q = tl.load(Q + t * q_stride + e, mask=inside, other=0.0)
            r = tl.load(R + t * r_stride + e, mask=inside, other=0.0) - alpha * q
            tl.store(X + t * x_stride + e, x, mask=inside)
            tl.store(R + t * r_stride + e, r, mask=inside)
            z = r
            if PRECONDITIONED:
                z = r * tl.load(M + t * m_stride + e, mask=inside, other=0.0)
            r64 = r.to(tl.float64)
            new_rz += r64 * z
            new_rr += r64 * r64
        tl.store(PARTS + t * 2 * parts + part, tl.sum(new_rz, 0))
        tl.store(PARTS + (t * 2 + 1) * parts + part, tl.sum(new_rr, 0))


@triton.jit
def turn_kernel(
    R, P, M, RZ, RR, LIMIT, STATUS, ITERATIONS, PARTS, STEP, r_stride, p_stride, m_stride, SIZE,
    PRECONDITIONED: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """p = M r + beta p in the tasks that step, and every task's scalars."""
    part, t, parts = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    outcome = tl.load(STEP + 2 * t)
    if outcome == RUNNING:
        new_rz = add_parts(PARTS + t * 2 * parts, parts, BP)
        new_rr = add_parts(PARTS + (t * 2 + 1) * parts, parts, BP)
        beta = (new_rz / tl.load(STEP + 2 * t + 1)).to(P.dtype.element_ty)
        for step in range(STEPS):
            e = (part.to(tl.int64) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
            inside = e < SIZE
            z = tl.load(R + t * r_stride + e, mask=inside, other=0.0)
            if PRECONDITIONED:
                z = z * tl.load(M + t * m_stride + e, mask=inside, other=0.0)
            p = tl.load(P + t * p_stride + e, mask=inside, other=0.0)
            tl.store(P + t * p_stride + e, z + beta * p, mask=inside)
        if part == 0:
            tl.store(RZ + t, new_rz)
            tl.store(RR + t, new_rr)
            tl.store(ITERATIONS + t, tl.load(ITERATIONS + t) + 1)
            done = tl.where(new_rr <= tl.load(LIMIT + t), CONVERGED, RUNNING)
            done = tl.where(is_finite(new_rr), done, NOT_FINITE)
            tl.store(STATUS + t, done.to(tl.int64))
    elif (outcome >= 0) & (part == 0):
        tl.store(STATUS + t, outcome.to(tl.int64))


def cg_step(*system: Tensor | None, block: int = 1024, steps: int = 4, warps: int = 4) -> None:
    """Advances T systems by one step in place.

    Args:
        system: The arguments of :func:`metasparse_ext.reference.cg.cg_step`, in its order; what
            changes is contiguous.
        block, steps: A program has ``steps`` times ``block`` elements.
        warps: Warps of a program.
    """
    x, r, p, q, preconditioner, rz, rr, limit, status, iterations = system
    tasks, size = x.shape
    parts = triton.cdiv(size, block * steps)
    widest = triton.next_power_of_2(parts)
    grid = (parts, tasks)
    preconditioned = preconditioner is not None
    dots = x.new_empty((tasks, 3, parts), dtype=torch.float64)
    squares = x.new_empty((tasks, 2, parts), dtype=torch.float64)
    outcome = x.new_empty((tasks, 2), dtype=torch.float64)
    (x, r, p, q, m), (xs, rs, ps, qs, ms) = operands(x, r, p, q, preconditioner)
    dots_kernel[grid](p, q, dots, ps, qs, size, block, steps, num_warps=warps)
    advance_kernel[grid](
        x, r, p, q, m, rz, status, dots, squares, outcome, xs, rs, ps, qs, ms, size,
        preconditioned, torch.finfo(x.dtype).eps, block, steps, widest, num_warps=warps,
    )  # fmt: skip
    turn_kernel[grid](
        r, p, m, rz, rr, limit, status, iterations, squares, outcome, rs, ps, ms, size,
        preconditioned, block, steps, widest, num_warps=warps,
    )  # fmt: skip
