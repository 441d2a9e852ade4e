"""Conjugate gradients over T independent systems at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metasparse_ext.ops.cg import cg_step
from metasparse_ext.reference.cg import CONVERGED, NOT_FINITE, NOT_POSITIVE, RUNNING, dots

Operator = Callable[[Tensor], Tensor]


class CGStatus(IntEnum):
    """How one task's solve ended."""

    CONVERGED = CONVERGED
    """The residual met the tolerance (or rounding's limit, when no tolerance was given)."""
    ITERATIONS = RUNNING
    """All the iterations were used first: the usual end of a fixed-iteration solve."""
    NOT_POSITIVE = NOT_POSITIVE
    """A direction with p'Ap <= 0: A is indefinite or singular. The last iterate is kept."""
    NOT_FINITE = NOT_FINITE
    """NaN or infinity in A or b. The last finite iterate is kept."""


class CGResult(NamedTuple):
    """Outcome of :func:`cg`.

    Attributes:
        solution: (T, P).
        iterations: (T,) int64, products with A that changed the task's iterate.
        residuals: (T,) float64, norm of b - A x as the recurrence carries it.
        status: (T,) int64, one :class:`CGStatus` a task.
    """

    solution: Tensor
    iterations: Tensor
    residuals: Tensor
    status: Tensor


def cg(
    operator: Operator,
    b: Tensor,
    *,
    iterations: int,
    tolerance: float | None = None,
    x0: Tensor | None = None,
    preconditioner: Tensor | None = None,
    differentiable: bool | None = None,
) -> CGResult:
    """Solves A_t x_t = b_t for T symmetric positive definite matrices, given by one product.

    A step is one call of ``operator`` for all tasks and one fused vector update. A task that has
    converged, met a direction without positive curvature or a value that is not finite stands
    still from then on, and the others go on untouched. Without ``tolerance`` nothing is read on
    the host, so the whole solve can be captured in a CUDA graph; with it, the host looks once a
    step whether any task still runs.

    With x0 = 0 the first residual is b itself, so k iterations cost k products, not k + 1.

    Args:
        operator: maps (T, P) to (T, P), row t to A_t times row t.
        b: (T, P) right-hand sides, float32 or float64. A zero row has the solution zero.
        iterations: how many at most (exactly, without a tolerance).
        tolerance: stop a task when the norm of its residual is at most this times the norm of b.
            Default: the rounding of b's dtype, below which x gains no digit.
        x0: (T, P) where to start; default zero. Costs one product.
        preconditioner: (P,) or (T, P) positive, an approximation of the inverse of A's diagonal.
        differentiable: attach gradients to the solution, by the implicit function theorem: one
            more product now, and one more solve (same options, x0 = 0) in the backward pass. They
            reach b and, when ``operator`` is itself made of differentiable operations, whatever it
            closes over. Default: whether b requires grad. First order only: differentiating
            twice raises an error.

    Returns:
        solution, iterations, residuals and status, each per task.

    Raises:
        TypeError: b is not a float32 or float64 tensor.
        ValueError: a wrong shape, dtype or count.

    Source:
        Hestenes and Stiefel, 1952; Nocedal and Wright, Numerical Optimization, algorithms 5.3
        and 7.1 (the guard).
    """
    _check(b, iterations, tolerance, x0, preconditioner)
    if preconditioner is not None:
        preconditioner = preconditioner.detach().expand_as(b)
    with torch.no_grad():
        result = _solve(operator, b.detach(), iterations, tolerance, x0, preconditioner)
    if differentiable is None:
        differentiable = b.requires_grad
    if not (differentiable and torch.is_grad_enabled()):
        return result

    def solve(rhs: Tensor) -> Tensor:
        return _solve(operator, rhs, iterations, tolerance, None, preconditioner).solution

    residual = b - operator(result.solution)
    return result._replace(solution=_Implicit.apply(residual, result.solution, solve))


def _solve(
    operator: Operator,
    b: Tensor,
    iterations: int,
    tolerance: float | None,
    x0: Tensor | None,
    preconditioner: Tensor | None,
) -> CGResult:
    bb = dots(b, b)
    relative = max(tolerance or 0.0, torch.finfo(b.dtype).eps)
    limit = relative * relative * bb
    if x0 is None:
        x, r = torch.zeros(b.shape, dtype=b.dtype, device=b.device), _dense_copy(b)
    else:
        # A zero right-hand side has the solution zero wherever the search starts.
        x = _dense_copy(torch.where(bb[:, None] == 0, 0, x0.detach()))
        r = _dense_copy(b - operator(x))
    z = r if preconditioner is None else preconditioner * r
    p = _dense_copy(z)
    rz, rr = dots(r, z), dots(r, r)
    status = torch.where(rr <= limit, CONVERGED, RUNNING)
    status = torch.where(rr.isfinite() & bb.isfinite(), status, NOT_FINITE)
    taken = torch.zeros_like(status)
    for _ in range(iterations):
        if tolerance is not None and not bool((status == RUNNING).any()):
            break
        q = operator(p)
        cg_step(x, r, p, q, preconditioner, rz, rr, limit, status, taken)
    return CGResult(x, taken, rr.sqrt(), status)


def _dense_copy(t: Tensor) -> Tensor:
    """Steps update their vectors in place, so these must be their own and contiguous."""
    return t.clone(memory_format=torch.contiguous_format)


class _Implicit(torch.autograd.Function):
    """Passes a solution of A x = b through, with the gradient of A^-1 at the residual.

    x = x* + A^-1 (b - A x*) has the value x* at a solution x*, and its derivatives in b and in A
    are those of A^-1 b; A is symmetric, so the transposed solve is the same one.
    """

    @staticmethod
    def forward(ctx, residual: Tensor, solution: Tensor, solve: Callable[[Tensor], Tensor]):
        ctx.solve = solve
        return solution.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return ctx.solve(gradient), None, None


def _check(
    b: Tensor,
    iterations: int,
    tolerance: float | None,
    x0: Tensor | None,
    preconditioner: Tensor | None,
) -> None:
    if not isinstance(b, Tensor) or b.dtype not in (torch.float32, torch.float64):
        got = b.dtype if isinstance(b, Tensor) else type(b).__name__
        raise TypeError(f"cg: expected b to be a float32 or float64 tensor, got {got}")
    if b.dim() != 2:
        raise ValueError(f"cg: expected b of shape (T, P), got {tuple(b.shape)}")
    if iterations < 0:
        raise ValueError(f"cg: expected iterations >= 0, got {iterations}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"cg: expected tolerance > 0 or None, got {tolerance}")
    if x0 is not None and (x0.shape != b.shape or x0.dtype != b.dtype):
        raise ValueError(
            f"cg: expected x0 of shape {tuple(b.shape)} and {b.dtype}, got "
            f"{tuple(x0.shape)} and {x0.dtype}"
        )
    if preconditioner is not None and preconditioner.shape not in (b.shape, b.shape[1:]):
        raise ValueError(
            f"cg: expected preconditioner of shape ({b.shape[1]},) or {tuple(b.shape)}, got "
            f"{tuple(preconditioner.shape)}"
        )
