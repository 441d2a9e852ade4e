"""The derivatives of a conjugate-gradient solve, to second order.

Let x* be the solution that was found, a constant, and S = A^-1 as a constant linear map, whose
derivative is S itself. A is only known by its products, which may depend on anything. A step

    x1 = x* + S (b - A x*),     x2 = x1 + S (b - A x1)

leaves the values alone, since the residuals are zero, and makes derivatives right: the error of x1
is (I - S A) times that of x*, the factor is of first order in any change, and so x1 is right to
first order and x2 to second.
"""

# Functions have arguments of their own, which their base class cannot name.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function

Solve = Callable[[Tensor], Tensor]


def attach(
    solution: Tensor, b: Tensor, operator: Callable[[Tensor], Tensor], solve: Solve
) -> Tensor:
    """``solution``, with the derivatives of A^-1 b in b and in all that ``operator`` depends on.

    Args:
        solution: (T, P) x*.
        b: (T, P).
        operator: maps (T, P) to (T, P), row t to A_t times row t.
        solve: maps (T, P) to A^-1 times it; its result carries no graph.
    """
    first = _Step.apply(solution, b - operator(solution), solve, False)
    return _Step.apply(first, b - operator(first), solve, True)


def _inverse(vector: Tensor, solve: Solve) -> Tensor:
    """S v."""
    if is_legacy_batchedtensor(vector):
        raise NotImplementedError(
            "cg: expected torch.func.vmap over the backward pass, got torch.autograd.grad with "
            "is_grads_batched=True (or gradcheck's check_batched_grad), whose batches cannot be "
            "solved for"
        )
    return _Inverse.apply(vector, solve(vector.detach()).detach(), solve)


class _Inverse(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(vector: Tensor, result: Tensor, solve: Solve) -> Tensor:
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.solve = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _inverse(grad, ctx.solve), None, None

    @staticmethod
    def jvp(ctx: Any, vector_dot: Tensor, *_: object) -> Tensor:
        return _inverse(vector_dot, ctx.solve)


class _Step(Function):
    """x + S r at a residual r that is zero: x itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, residual: Tensor, solve: Solve, last: bool) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, residual, ctx.solve, ctx.last = inputs
        ctx.save_for_backward(residual)
        ctx.save_for_forward(residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if not ctx.last:
            return grad, _inverse(grad, ctx.solve), None, None
        if not torch.is_grad_enabled():
            return grad, None, None, None  # the second step adds to higher derivatives only
        (residual,) = ctx.saved_tensors
        return grad, _Order.apply(_inverse(grad, ctx.solve), residual, 1), None, None

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, residual_dot: Tensor | None, *_: object) -> Tensor:
        (residual,) = ctx.saved_tensors
        x_dot = torch.zeros_like(residual) if x_dot is None else x_dot
        if residual_dot is None:
            return x_dot.clone()
        moved = _inverse(residual_dot, ctx.solve)
        return x_dot + (_Order.apply(moved, residual, 1) if ctx.last else moved)


class _Order(Function):
    """A vector as it is, on which the third derivative of the solution fails.

    A derivative of the solution holds one of these, tied to all that the solution depends on by the
    residual. Each further derivative meets it and puts one of the next order into its result.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(vector: Tensor, residual: Tensor, order: int) -> Tensor:
        return vector.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, residual, ctx.order = inputs
        ctx.save_for_backward(residual)
        ctx.save_for_forward(residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        following = _following(ctx)
        return grad, following if torch.is_grad_enabled() else None, None

    @staticmethod
    def jvp(ctx: Any, vector_dot: Tensor | None, *_: object) -> Tensor:
        following = _following(ctx)
        return following if vector_dot is None else vector_dot + following


def _following(ctx: Any) -> Tensor:
    """Zero, marked as the next derivative."""
    if ctx.order == 2:
        raise NotImplementedError(
            "cg: expected to be differentiated at most twice, got a third derivative or a backward "
            "pass through one of forward mode"
        )
    (residual,) = ctx.saved_tensors
    return _Order.apply(torch.zeros_like(residual), residual, ctx.order + 1)
