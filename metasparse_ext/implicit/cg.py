"""Conjugate gradients over T independent systems at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.autograd import forward_ad

from metasparse_ext._arguments import (
    FLOATS,
    LARGEST,
    require_callable,
    require_choice,
    require_count,
    require_like,
    require_number,
    require_shape,
    require_tensor,
)
from metasparse_ext.implicit import cg_derivatives
from metasparse_ext.implicit.transforms import (
    derivative_levels,
    differentiates_inside_maps,
    is_mapped,
    map_levels,
    maps_at_work,
)
from metasparse_ext.ops._operands import autocast_is_on
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
        ValueError: a wrong shape, device, count or tolerance.

    Source:
        Hestenes and Stiefel, 1952; Nocedal and Wright, Numerical Optimization, algorithms 5.3
        and 7.1 (the guard).
    """
    require_callable("cg", "operator", operator, "a function of (T, P)")
    require_choice("cg", "differentiable", differentiable, (None, True, False))
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
    return maybe_current_level() is not None


def _guard_of_maps(operator: Operator, b: Tensor) -> Callable[[], None]:
    """A check, for the backward pass, that what ``operator`` closes over means what it did.

    A mapped tensor names its vmap by a level alone. After the end of that vmap another one may have
    the level, and would take the tensor for its own.
    """
    before, all_at_work = map_levels(), maps_at_work()
    if not (before and is_mapped(operator(torch.zeros(b.shape, dtype=b.dtype, device=b.device)))):
        return lambda: None
    inside = differentiates_inside_maps()

    def check() -> None:
        # Around a vmap, torch itself enters it anew for a backward pass; inside, it must go on.
        now = map_levels()
        holds = now[: len(before)] == before and all_at_work() if inside else now == before
        if not holds:
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
        name = "operator's result"
        require_tensor("cg", name, result)
        if autocast_is_on(b):
            result = result.to(b.dtype)
        require_like("cg", name, result, "b", b)
        require_shape("cg", name, result, tuple(v.shape))
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
    top = (
        torch.linalg.vector_norm(b, torch.inf, 1, keepdim=True)
        if b.shape[1]
        else b.new_zeros(b.shape[0], 1)
    )
    if x0 is None:
        unit = _unit(top)
        b = b / unit
        x, r = torch.zeros(b.shape, dtype=b.dtype, device=b.device), _dense_copy(b)
    else:
        # A zero right-hand side has the solution zero wherever the search starts.
        x = torch.where(top == 0, 0, x0.detach())
        r = b - operator(x).detach()
        unit = _unit(torch.maximum(top, r.abs().amax(1, keepdim=True)) if b.shape[1] else top)
        b, x, r = b / unit, _dense_copy(x / unit), _dense_copy(r / unit)
    bb = dots(b, b)
    relative = max(tolerance or 0.0, torch.finfo(b.dtype).eps)
    limit = relative * relative * bb
    z = r if preconditioner is None else preconditioner * r
    p = _dense_copy(z)
    rr = bb.clone() if x0 is None else dots(r, r)
    rz = rr.clone() if preconditioner is None else dots(r, z)
    status = torch.where(rr <= limit, CONVERGED, RUNNING)
    status = torch.where(rr + bb < torch.inf, status, NOT_FINITE)
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
    return CGResult(x * unit, taken, rr.sqrt() * unit[:, 0], status)


def _unit(top: Tensor) -> Tensor:
    """What rows of a largest entry (T, 1) are solved in: one, or a power of two near an extreme.

    A solve takes products of four numbers like the right-hand side, squared by its tolerance, which
    go under or over long before the solution does. Dividing by a power of two changes no digit.
    """
    mantissa, _ = torch.frexp(top)
    widest = 2.0**128 if top.dtype == torch.float64 else 2.0**40
    extreme = (top > widest) | ((top < 1 / widest) & (top > 0))
    power = top / (2 * mantissa)
    return torch.where(extreme & (top < torch.inf), power, 1)


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
    require_tensor("cg", "b", b, dtypes=FLOATS)
    require_shape("cg", "b", b, ("T", "P"))
    require_count("cg", "iterations", iterations, most=LARGEST)
    if tolerance is not None:
        require_number("cg", "tolerance", tolerance, above=0.0)
    for name, tensor, shapes in (
        ("x0", x0, (b.shape,)),
        ("preconditioner", preconditioner, (b.shape[1:], b.shape)),
    ):
        if tensor is not None:
            require_tensor("cg", name, tensor)
            require_like("cg", name, tensor, "b", b)
            require_shape("cg", name, tensor, *shapes)
