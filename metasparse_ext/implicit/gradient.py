"""The implicit meta-gradient of proximally regularised adaptation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metasparse_ext._arguments import (
    FLOATS,
    require_callable,
    require_shape,
    require_tensor,
    require_type,
)
from metasparse_ext.implicit.cg import CGResult, CGStatus, cg
from metasparse_ext.implicit.linearize import Curvature, linearize
from metasparse_ext.implicit.operators import DampedOperator, Kind, damped


class ImplicitGradient(NamedTuple):
    """Outcome of :func:`implicit_gradient`.

    Attributes:
        gradient: (T, P) every task's meta-gradient.
        query_loss: (T,) outer losses at the adapted parameters.
        support_loss: (T,) inner losses there, without the proximal term.
        solve: the conjugate-gradient solve: iterations, residuals and status per task.
    """

    gradient: Tensor
    query_loss: Tensor
    support_loss: Tensor
    solve: CGResult


def implicit_gradient(
    support_loss: Callable[[Tensor], Tensor],
    query_loss: Callable[[Tensor], Tensor],
    params: Tensor,
    *,
    lam: float | Tensor,
    kind: Kind = "paper",
    damping: float | None = None,
    curvature: Curvature = "hessian",
    model: Callable[[Tensor], Tensor] | None = None,
    iterations: int = 5,
    tolerance: float | None = None,
    x0: Tensor | None = None,
    preconditioner: Tensor | None = None,
) -> ImplicitGradient:
    """Differentiates T adapted networks' outer losses with respect to where they started.

    For phi* = argmin L_support(phi) + lambda/2 ||phi - theta||^2, the gradient of L_query(phi*)
    in theta is (I + H/lambda)^-1 grad L_query(phi*), H the curvature of L_support at phi*
    (Rajeswaran et al., Meta-Learning with Implicit Gradients, 2019, lemma 1). How phi* was found
    does not enter: neither its time nor its memory.

    A task whose first direction already shows no positive curvature gets the first-order
    meta-gradient up to the operator's scale (:func:`implicit_solve`). A task whose status is
    NOT_FINITE has no meta-gradient: its row is what the solve was left with. Look at
    ``solve.status``.

    Args:
        support_loss: maps parameters (T, P) to inner losses (T,) without the proximal term. With
            ``model`` given, maps ``model``'s outputs to them, as in :func:`linearize`.
        query_loss: maps parameters (T, P) to outer losses (T,).
        params: (T, P) adapted parameters phi*.
        lam, kind, damping: the operator, see :func:`damped`.
        curvature, model: the matrix H, see :func:`linearize`.
        iterations, tolerance, x0, preconditioner: the solve, see :func:`cg`.

    Raises:
        ValueError: a lam that is not positive and finite, a damping that is negative or not
            finite, and as :func:`cg` and :func:`linearize`.

    Example:
        Any module will do, here one that is not of this package::

            net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
            layout = Layout.of(net)
            support = task_losses(net, layout, x_support, y_support)     # images (T, N, 3, 8, 8)
            query = task_losses(net, layout, x_query, y_query)
            result = implicit_gradient(support, query, phi, lam=0.5)     # phi (T, P): adapted
            for name, gradient in layout.unflatten(result.gradient.mean(0)).items():
                net.get_parameter(name).grad = gradient
    """
    require_callable("implicit_gradient", "support_loss", support_loss)
    require_callable("implicit_gradient", "query_loss", query_loss)
    require_tensor("implicit_gradient", "params", params, dtypes=FLOATS)
    require_shape("implicit_gradient", "params", params, ("T", "P"))
    if isinstance(lam, Tensor):
        tasks, size = params.shape
        require_shape("implicit_gradient", "lam", lam, (), (1,), (tasks, 1), (size,), (tasks, size))
    loss, gradient = _value_and_gradient(query_loss, params)
    inner = linearize(support_loss, params, model=model, curvature=curvature)
    operator = damped(inner.hvp, kind, lam=lam, damping=damping)
    implicit, solve = implicit_solve(
        operator,
        gradient,
        iterations=iterations,
        tolerance=tolerance,
        x0=x0,
        preconditioner=preconditioner,
    )
    return ImplicitGradient(implicit, loss, inner.loss, solve)


def implicit_solve(
    operator: DampedOperator, gradient: Tensor, **options: Any
) -> tuple[Tensor, CGResult]:
    """The last step of :func:`implicit_gradient`, for who has the outer gradient and A already.

    Args:
        operator: A, see :func:`damped`.
        gradient: (T, P) b, the outer losses' gradients at the adapted parameters.
        options: of :func:`cg`.

    Returns:
        (T, P) every task's meta-gradient, and the solve. A task whose first direction already
        shows no positive curvature gets the solution of A without H, that is, the first-order
        meta-gradient up to the operator's scale.
    """
    expected = "a DampedOperator, as damped makes"
    require_type("implicit_solve", "operator", operator, DampedOperator, expected)
    require_tensor("implicit_solve", "gradient", gradient, dtypes=FLOATS)
    require_shape("implicit_solve", "gradient", gradient, ("T", "P"))
    solve = cg(operator, gradient, **options)
    stuck = (solve.status == CGStatus.NOT_POSITIVE) & (solve.iterations == 0)
    solution = torch.where(stuck[:, None], gradient / operator.shift, solve.solution)
    gained = isinstance(operator.gain, Tensor) or operator.gain != 1
    return operator.gain * solution if gained else solution, solve


def _value_and_gradient(loss: Callable[[Tensor], Tensor], params: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        point = params.detach().requires_grad_()
        losses = loss(point)
        require_tensor("implicit_gradient", "query_loss's result", losses)
        require_shape("implicit_gradient", "query_loss's result", losses, params.shape[:1])
        (gradient,) = torch.autograd.grad(losses.sum(), point)
    return losses.detach(), gradient
