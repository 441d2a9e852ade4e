"""One step of batched conjugate gradients, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

# Task states; `metasparse_ext.implicit.CGStatus` gives them to users.
CONVERGED, RUNNING, NOT_POSITIVE, NOT_FINITE = range(4)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """The dot product of each pair of rows, (T, P) and (T, P) -> (T,), summed in float64."""
    return (a.double() * b).sum(-1)


def cg_step(
    x: Tensor,
    r: Tensor,
    p: Tensor,
    q: Tensor,
    preconditioner: Tensor | None,
    rz: Tensor,
    rr: Tensor,
    limit: Tensor,
    status: Tensor,
    iterations: Tensor,
) -> None:
    """Advances the running tasks by one step, in place and without reading anything on the host.

    Args:
        x, r, p: (T, P) iterate, residual b - A x and search direction; updated.
        q: (T, P) A p.
        preconditioner: None, or (T, P) approximate inverse diagonal of A.
        rz, rr: (T,) float64, r'Mr and r'r; updated.
        limit: (T,) float64, a task has converged when r'r is at most this.
        status: (T,) int64 task states; updated. Only running tasks change anything else.
        iterations: (T,) int64 steps taken; updated.
    """
    advanced = advance(x, r, p, q, preconditioner, rz, rr, limit, status, iterations)
    for state, value in zip((x, r, p, rz, rr, status, iterations), advanced, strict=True):
        state.copy_(value)


def advance(
    x: Tensor,
    r: Tensor,
    p: Tensor,
    q: Tensor,
    preconditioner: Tensor | None,
    rz: Tensor,
    rr: Tensor,
    limit: Tensor,
    status: Tensor,
    iterations: Tensor,
) -> tuple[Tensor, ...]:
    """:func:`cg_step` out of place: the new x, r, p, rz, rr, status and iterations."""
    curvature = dots(p, q)
    # Below the rounding of p'Ap a direction cannot be told from one in the null space.
    floor = torch.finfo(x.dtype).eps * (dots(p, p) * dots(q, q)).sqrt()
    running = status == RUNNING
    finite = curvature.isfinite()
    step = running & finite & (curvature > floor)

    alpha = torch.where(step, rz / curvature, 0).to(x.dtype)[:, None]
    moves = step[:, None]
    x = torch.where(moves, x + alpha * p, x)
    r = torch.where(moves, r - alpha * q, r)
    z = r if preconditioner is None else preconditioner * r
    new_rz, new_rr = dots(r, z), dots(r, r)
    beta = (new_rz / rz).to(x.dtype)[:, None]
    p = torch.where(moves, z + beta * p, p)

    rz = torch.where(step, new_rz, rz)
    rr = torch.where(step, new_rr, rr)
    outcome = torch.where(step & (rr <= limit), CONVERGED, status)
    outcome = torch.where(running & finite & ~step, NOT_POSITIVE, outcome)
    broken = running & ~(finite & rr.isfinite())
    return x, r, p, rz, rr, torch.where(broken, NOT_FINITE, outcome), iterations + step
