"""A Hessian-free (truncated Newton) solver of proximally regularised adaptation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metasparse_ext._arguments import (
    FLOATS,
    LARGEST,
    require_callable,
    require_count,
    require_shape,
    require_tensor,
)
from metasparse_ext.implicit.cg import CGStatus, cg
from metasparse_ext.implicit.linearize import Curvature, linearize
from metasparse_ext.implicit.operators import damped
from metasparse_ext.ops._operands import is_readable
from metasparse_ext.reference.cg import dots

# Of the line search: the part of the predicted decrease that a step must bring, and how often a
# step is halved before the task stays where it is.
_ARMIJO = 1e-4
_HALVINGS = 20


class HessianFree(NamedTuple):
    """Outcome of :func:`hessian_free`.

    Attributes:
        params: (T, P) where the tasks end.
        losses: (steps, T) inner losses before each step, without the proximal term.
        rates: (steps, T) the parts of Newton's steps that were taken; 0 where none led down.
    """

    params: Tensor
    losses: Tensor
    rates: Tensor


def hessian_free(
    loss: Callable[[Tensor], Tensor],
    params: Tensor,
    *,
    lam: float | Tensor,
    steps: int = 1,
    iterations: int = 5,
    model: Callable[[Tensor], Tensor] | None = None,
    curvature: Curvature = "hessian",
) -> HessianFree:
    """Minimises G(phi) = L(phi) + lambda/2 ||phi - theta||^2 for T tasks, from phi = theta.

    A step takes its direction d from a few conjugate gradients on (H + lambda I) d = -grad G, H
    the curvature of L at phi, and its length from a line search of each task: 1, 1/2, 1/4, ...,
    the first that brings a ten-thousandth of the decrease that the slope predicts. A task whose
    very first conjugate gradient meets no positive curvature goes down the gradient instead; one
    that no tried length leads down stays. So G never rises, but by rounding.

    A step costs one graph of the gradient, ``iterations`` products, and one forward pass for each
    length tried. The host looks after each of them whether every task has one; under a capture all
    are tried.

    Args:
        loss: maps parameters (T, P) to inner losses (T,). With ``model`` given, maps ``model``'s
            outputs to them, as in :func:`linearize`.
        params: (T, P) theta, float32 or float64.
        lam: lambda > 0: a number, or a tensor () or (T, 1).
        steps: Newton's steps.
        iterations: conjugate gradients of each.
        model, curvature: the matrix H, see :func:`linearize`.

    Raises:
        TypeError: params is no float32 or float64 tensor, or a function is none.
        ValueError: a wrong shape or count, or a lambda that is not positive and finite.

    Source: the solver of "iMAML, HF" (Rajeswaran et al., Meta-Learning with Implicit Gradients,
        2019), of which the paper states the five conjugate gradients and that there is a line
        search; its code has none. Nocedal and Wright, Numerical Optimization, algorithms 7.1 and
        3.1.
    """
    require_callable("hessian_free", "loss", loss)
    require_tensor("hessian_free", "params", params, dtypes=FLOATS)
    require_shape("hessian_free", "params", params, ("T", "P"))
    require_count("hessian_free", "steps", steps, most=LARGEST)
    require_count("hessian_free", "iterations", iterations, least=1, most=LARGEST)
    if isinstance(lam, Tensor):
        require_shape("hessian_free", "lam", lam, (), (1,), (len(params), 1))
    theta = phi = params.detach()
    losses, rates = [], []
    for _ in range(steps):
        inner = linearize(loss, phi, model=model, curvature=curvature)
        operator = damped(inner.hvp, "ridge", lam=lam)
        slope = inner.gradient + lam * (phi - theta)
        direction = _direction(operator, slope, lam, iterations)
        predicted = dots(slope, direction).to(phi.dtype)
        value = inner.loss + _proximal(phi, theta, lam)

        def value_at(point: Tensor) -> Tensor:
            with torch.no_grad():
                inner_loss = loss(point if model is None else model(point))
                return inner_loss + _proximal(point, theta, lam)

        rate = _line_search(value_at, phi, direction, value, predicted)
        phi = torch.addcmul(phi, rate[:, None], direction)
        losses.append(inner.loss)
        rates.append(rate)
    nothing = phi.new_empty(0, len(phi))
    return HessianFree(
        phi,
        torch.stack(losses) if losses else nothing,
        torch.stack(rates) if rates else nothing,
    )


def _direction(
    operator: Callable[[Tensor], Tensor], slope: Tensor, lam: float | Tensor, iterations: int
) -> Tensor:
    """(T, P) descent directions: every iterate of conjugate gradients from 0 is one."""
    solve = cg(operator, -slope, iterations=iterations, differentiable=False)
    stuck = (solve.status == CGStatus.NOT_POSITIVE) & (solve.iterations == 0)
    return torch.where(stuck[:, None], -slope / lam, solve.solution)


def _proximal(phi: Tensor, theta: Tensor, lam: float | Tensor) -> Tensor:
    """(T,) lambda/2 ||phi - theta||^2."""
    return (lam / 2 * (phi - theta).square()).sum(1)


def _line_search(
    value_at: Callable[[Tensor], Tensor],
    phi: Tensor,
    direction: Tensor,
    value: Tensor,
    predicted: Tensor,
) -> Tensor:
    """(T,) the largest 2^-k of each task that meets Armijo's condition, or 0."""
    # In a minimum the decrease is less than the rounding of the values that it is told by.
    limit = value + 4 * torch.finfo(value.dtype).eps * value.abs()
    rate, found = torch.ones_like(value), torch.zeros_like(value, dtype=torch.bool)
    for _ in range(_HALVINGS + 1):
        reached = value_at(torch.addcmul(phi, rate[:, None], direction))
        found = found | (reached <= limit + _ARMIJO * rate * predicted)
        if is_readable(found) and bool(found.all()):
            break
        rate = torch.where(found, rate, rate / 2)
    return torch.where(found, rate, 0)
