"""The derivatives of the softmax head to any order, by the implicit function theorem.

At the solution W the slope phi(W, theta) of the objective is zero, theta being the features, the
center and lambda. With H = dphi/dW hence dW = -H^-1 (dphi/dtheta) dtheta, and a solve s = H^-1 g
has ds = H^-1 (dg - dH s). Both rules are written in differentiable operations and in solves, so
each derivative has the next.
"""

# Functions have arguments of their own, which their base class cannot name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metasparse_ext.implicit.head_problem import HeadProblem
from metasparse_ext.ops.softmax_head import choose


def attach(weight: Tensor, problem: HeadProblem) -> Tensor:
    """``weight``, with the derivatives of the solution of ``problem`` that it stands for."""
    return _Attach.apply(weight, problem.features, problem.labels, problem.center, problem.lam)


def _vjp(
    function: Callable[..., Any], *point: Any
) -> tuple[Any, Callable[..., tuple[Tensor, ...]]]:
    """Of a function without auxiliary results, which the types of ``torch.func.vjp`` leave open."""
    value, pull = torch.func.vjp(function, *point)[:2]
    return value, pull


def _push(
    function: Callable[..., Tensor], point: tuple[Any, ...], direction: tuple[Any, ...]
) -> Tensor:
    """The derivative of ``function`` at a point, by transposing its transpose.

    That is reverse mode twice, which also works inside forward mode; that does not nest.
    """
    value, pull = _vjp(function, *point)
    _, push = _vjp(pull, torch.zeros_like(value))
    filled = (
        torch.zeros_like(at) if along is None else along
        for at, along in zip(point, direction, strict=True)
    )
    return push(tuple(filled))[0]


class _AtPoint(Function):
    """Saves its result and all arguments but the first one."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, *point = inputs
        ctx.save_for_backward(output, *point)
        ctx.save_for_forward(output, *point)


class _Attach(_AtPoint):
    @staticmethod
    def forward(
        weight: Tensor, features: Tensor, labels: Tensor, center: Tensor, lam: Tensor
    ) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, features, labels, center, lam = ctx.saved_tensors
        if not torch.is_grad_enabled():
            by_features, by_center, by_lam = choose("softmax_head_grad")(
                grad, weight, features, labels, center, lam
            )
            return None, by_features, None, by_center, by_lam
        _, pull = _vjp(_slope(weight, labels), features, center, lam)
        by_features, by_center, by_lam = pull(-_Solve.apply(grad, weight, features, labels, lam))
        return None, by_features, None, by_center, by_lam

    @staticmethod
    def jvp(
        ctx: Any,
        _: object,
        features_dot: Tensor | None,
        __: object,
        center_dot: Tensor | None,
        lam_dot: Tensor | None,
    ) -> Tensor:
        weight, features, labels, center, lam = ctx.saved_tensors
        slope_dot = _push(
            _slope(weight, labels), (features, center, lam), (features_dot, center_dot, lam_dot)
        )
        return -_Solve.apply(slope_dot, weight, features, labels, lam)


class _Solve(_AtPoint):
    """H^-1 g: (T, C, D) -> (T, C, D)."""

    @staticmethod
    def forward(
        grad: Tensor, weight: Tensor, features: Tensor, labels: Tensor, lam: Tensor
    ) -> Tensor:
        # the gradient in the center is lambda times the solution
        _, by_center, _ = choose("softmax_head_grad")(grad, weight, features, labels, weight, lam)
        return by_center / lam[:, None, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        solution, weight, features, labels, lam = ctx.saved_tensors
        moved = _Solve.apply(grad, weight, features, labels, lam)
        _, pull = _vjp(_curvature(solution, labels), weight, features, lam)
        by_weight, by_features, by_lam = pull(-moved)
        return moved, by_weight, by_features, None, by_lam

    @staticmethod
    def jvp(
        ctx: Any,
        grad_dot: Tensor | None,
        weight_dot: Tensor | None,
        features_dot: Tensor | None,
        _: object,
        lam_dot: Tensor | None,
    ) -> Tensor:
        solution, weight, features, labels, lam = ctx.saved_tensors
        curvature_dot = _push(
            _curvature(solution, labels),
            (weight, features, lam),
            (weight_dot, features_dot, lam_dot),
        )
        rest = -curvature_dot if grad_dot is None else grad_dot - curvature_dot
        return _Solve.apply(rest, weight, features, labels, lam)


def _slope(weight: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """phi in (features, center, lambda); float64, as the solves are."""

    def slope(features: Tensor, center: Tensor, lam: Tensor) -> Tensor:
        problem = HeadProblem(features, labels, center, lam).double()
        return problem.gradient(weight.double()).to(weight.dtype)

    return slope


def _curvature(solution: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """H s in (weight, features, lambda)."""

    def product(weight: Tensor, features: Tensor, lam: Tensor) -> Tensor:
        problem = HeadProblem(features, labels, weight, lam).double()
        return problem.curvature(weight.double())(solution.double()).to(weight.dtype)

    return product
