"""Conjugate gradients over T independent systems at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from metasparse_ext.implicit import cg_derivatives
from metasparse_ext.implicit.transforms import (
    derivative_levels,
    differentiates_inside_maps,
    is_mapped,
    map_levels,
)
from metasparse_ext.ops._operands import autocast_is_on, check_dense
from metasparse_ext.ops.cg import cg_step
from metasparse_ext.reference.cg import CONVERGED, NOT_FINITE, NOT_POSITIVE, RUNNING, advance, dots

Operator = Callable[[Tensor], Tensor]

_ENDED = (
    "cg: expected a backward pass inside the vmap whose tensors operator closes over, got one "
    "after its end; take the gradient by torch.func.grad, around or inside the vmap, not by vjp's "
    "pullback or .backward()"
)


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
        operator: maps (T, P) to (T, P), row t to A_t times row t. Under autocast its results are
            cast back to b's dtype.
        b: (T, P) right-hand sides, float32 or float64. A zero row has the solution zero.
        iterations: how many at most (exactly, without a tolerance).
        tolerance: stop a task when the norm of its residual is at most this times the norm of b.
            Default: the rounding of b's dtype, below which x gains no digit.
        x0: (T, P) where to start; default zero. Costs one product.
        preconditioner: (P,) or (T, P) positive, an approximation of the inverse of A's diagonal.
        differentiable: attach derivatives to the solution, by the implicit function theorem, in
            reverse and in forward mode and under the transforms of ``torch.func``: two more
            products now, and one more solve (same options, x0 = 0) for each derivative, in the
            backward pass or, in forward mode, now. They reach b and, when ``operator`` is itself
            made of differentiable operations, whatever it closes over. Right to second order in
            reverse mode and to first order in forward mode; a third derivative, and forward mode
            inside or around another derivative, raise an error. With a graph of the gradient
            (``create_graph``) two solves take the place of one, which makes few iterations more
            exact. Default: whether b requires grad or has a tangent, or a transform of
            ``torch.func`` is at work.

    Returns:
        solution, iterations, residuals and status, each per task.

    Raises:
        TypeError: b is not a dense float32 or float64 tensor, or another dtype differs from b's.
        NotImplementedError: a third derivative; a backward pass through a derivative of forward
            mode, with ``is_grads_batched``, or after the end of a vmap whose tensors ``operator``
            closes over.
        ValueError: a wrong shape, device or count.

    Source:
        Hestenes and Stiefel, 1952; Nocedal and Wright, Numerical Optimization, algorithms 5.3
        and 7.1 (the guard).
    """
    _check(b, iterations, tolerance, x0, preconditioner)
    if preconditioner is not None:
        preconditioner = preconditioner.detach().expand_as(b)
    operator = _checked(operator, b)
    _refuse_mixed_modes()
    transformed = _transformed()
    result = _solve(operator, b.detach(), iterations, tolerance, x0, preconditioner)
    forward_mode = transformed or forward_ad.unpack_dual(b).tangent is not None
    if differentiable is None:
        differentiable = b.requires_grad or forward_mode
    if not (differentiable and (torch.is_grad_enabled() or forward_mode)):
        return result

    require_same_maps = _guard_of_maps(operator, b)

    def solve(rhs: Tensor) -> Tensor:
        require_same_maps()
        return _solve(operator, rhs, iterations, tolerance, None, preconditioner).solution

    return result._replace(solution=cg_derivatives.attach(result.solution, b, operator, solve))


def _transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return torch._C._functorch.maybe_current_level() is not None


def _guard_of_maps(operator: Operator, b: Tensor) -> Callable[[], None]:
    """A check, for the backward pass, that what ``operator`` closes over means what it did.

    A mapped tensor names its vmap by a level alone. After the end of that vmap another one may have
    the level, and would take the tensor for its own.
    """
    before = map_levels()
    if not (before and is_mapped(operator(torch.zeros(b.shape, dtype=b.dtype, device=b.device)))):
        return lambda: None
    inside = differentiates_inside_maps()

    def check() -> None:
        now = map_levels()
        if now != before and not (inside and now[: len(before)] == before):
            raise NotImplementedError(_ENDED)

    return check


def _refuse_mixed_modes() -> None:
    """What ``operator`` closes over cannot be followed into the level of another derivative."""
    forward, reverse = derivative_levels()
    if forward and forward + reverse > 1:
        raise NotImplementedError(
            "cg: expected forward mode alone or reverse mode, once or twice, got forward mode "
            "combined with another derivative; jacrev(jacrev(f)) is a Hessian in reverse mode"
        )


def _checked(operator: Operator, b: Tensor) -> Operator:
    """The operator, with its results in b's dtype under autocast and refused where they differ."""

    def product(v: Tensor) -> Tensor:
        result = operator(v)
        if autocast_is_on(b):
            result = result.to(b.dtype)
        if result.dtype != b.dtype:
            raise TypeError(f"cg: expected operator to return {b.dtype} like b, got {result.dtype}")
        if result.shape != v.shape:
            raise ValueError(
                f"cg: expected operator to return shape {tuple(v.shape)} like its argument, got "
                f"{tuple(result.shape)}"
            )
        return result

    return product


@torch.no_grad()
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
        r = _dense_copy(b - operator(x).detach())
    z = r if preconditioner is None else preconditioner * r
    p = _dense_copy(z)
    rz, rr = dots(r, z), dots(r, r)
    status = torch.where(rr <= limit, CONVERGED, RUNNING)
    status = torch.where(rr.isfinite() & bb.isfinite(), status, NOT_FINITE)
    taken = torch.zeros_like(status)
    transformed = _transformed()
    for _ in range(iterations):
        # A mapped value cannot be looked at: without the look a task that is done stands still.
        if tolerance is not None and not transformed and not bool((status == RUNNING).any()):
            break
        # Detached on its own, because no_grad leaves forward mode and outer transforms at work.
        q = operator(p).detach()
        if transformed:
            x, r, p, rz, rr, status, taken = advance(
                x, r, p, q, preconditioner, rz, rr, limit, status, taken
            )
        else:
            cg_step(x, r, p, q, preconditioner, rz, rr, limit, status, taken)
    return CGResult(x, taken, rr.sqrt(), status)


def _dense_copy(t: Tensor) -> Tensor:
    """Steps update their vectors in place, so these must be their own and contiguous."""
    return t.clone(memory_format=torch.contiguous_format)


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
    check_dense("cg", "b", b)
    if b.dim() != 2:
        raise ValueError(f"cg: expected b of shape (T, P), got {tuple(b.shape)}")
    if iterations < 0:
        raise ValueError(f"cg: expected iterations >= 0, got {iterations}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"cg: expected tolerance > 0 or None, got {tolerance}")
    for name, tensor in {"x0": x0, "preconditioner": preconditioner}.items():
        if tensor is not None and tensor.device != b.device:
            raise ValueError(f"cg: expected {name} on {b.device} like b, got {tensor.device}")
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
