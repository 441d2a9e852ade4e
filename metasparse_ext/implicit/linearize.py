"""Curvature products from one linearisation of the per-task losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metasparse_ext._arguments import (
    require_callable,
    require_choice,
    require_floating,
    require_like,
    require_shape,
    require_tensor,
)

Curvature = Literal["hessian", "ggn"]
CURVATURES: tuple[Curvature, ...] = get_args(Curvature)


@dataclass(frozen=True)
class Linearization:
    """Losses, gradients and curvature products of T tasks at one point.

    Attributes:
        loss: (T,) per-task losses, detached.
        gradient: (T, P) every task's own gradient, detached.
        hvp: maps directions (T, P) to curvature products (T, P). Tasks do not interact, so the
            curvature is block-diagonal and one call serves all of them. The result carries no
            graph.
    """

    loss: Tensor
    gradient: Tensor
    hvp: Callable[[Tensor], Tensor]


def linearize(
    loss: Callable[[Tensor], Tensor],
    params: Tensor,
    *,
    model: Callable[[Tensor], Tensor] | None = None,
    curvature: Curvature = "hessian",
) -> Linearization:
    """Linearises per-task losses once, for as many curvature products as a solver wants.

    The graph of the gradient is built here and kept; a product walks it without recording
    anything. So k products cost one graph and k walks, where the usual loop builds k graphs.

    Peak memory: the graph of one forward and one backward pass over the T tasks, plus the
    temporaries of one product. It depends neither on how ``params`` was reached (the point is
    detached, so inner steps leave nothing behind) nor on how many products are asked for. The
    graph is freed with the returned object.

    Args:
        loss: maps parameters (T, P) to losses (T,), task t's loss depending on row t alone. With
            ``model`` given, maps ``model``'s outputs to losses (T,).
        params: (T, P) the point, floating.
        model: maps parameters (T, P) to outputs (T, ...); required by ``"ggn"``.
        curvature: ``"hessian"``: the second derivative of the loss. ``"ggn"``: the generalised
            Gauss-Newton matrix J' L'' J (J the outputs' Jacobian, L'' the loss's Hessian in the
            outputs), positive semi-definite wherever the loss is convex in the outputs
            (Schraudolph, Neural Computation 2002).

    Raises:
        TypeError: ``params`` is not a floating tensor, or a function is none.
        ValueError: a wrong shape, an unknown curvature, or ``"ggn"`` without ``model``.
    """
    require_callable("linearize", "loss", loss)
    _check(params, model, curvature)
    with torch.enable_grad():
        point = params.detach().requires_grad_()
        outputs = model(point) if model is not None else point
        require_tensor("linearize", "model's result", outputs)
        losses = loss(outputs)
        require_tensor("linearize", "loss's result", losses)
        require_shape("linearize", "loss's result", losses, params.shape[:1])
        if curvature == "ggn":
            gradient, hvp = _gauss_newton(losses, outputs, point)
        else:
            gradient, hvp = _hessian(losses, point)

    def product(direction: Tensor) -> Tensor:
        require_tensor("hvp", "direction", direction)
        require_like("hvp", "direction", direction, "params", params)
        require_shape("hvp", "direction", direction, tuple(params.shape))
        return hvp(direction)

    return Linearization(losses.detach(), gradient, product)


def _hessian(losses: Tensor, point: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    gradient = _grad(losses, point, torch.ones_like(losses), create_graph=True)
    return gradient.detach(), lambda v: _grad(gradient, point, v)


def _gauss_newton(
    losses: Tensor, outputs: Tensor, point: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    slope = _grad(losses.sum(), outputs, create_graph=True)
    # J'u is linear in u, so its graph, built once at any u, transposes into J v.
    cotangent = slope.detach().requires_grad_()
    pullback = _grad(outputs, point, cotangent, create_graph=True)

    def product(direction: Tensor) -> Tensor:
        tangent = _grad(pullback, cotangent, direction)
        return _grad(outputs, point, _grad(slope, outputs, tangent))

    return pullback.detach(), product


def _grad(
    output: Tensor, source: Tensor, cotangent: Tensor | None = None, *, create_graph: bool = False
) -> Tensor:
    """The vector-Jacobian product; zero where ``output`` does not depend on ``source``."""
    if not output.requires_grad:
        return torch.zeros_like(source)
    (result,) = torch.autograd.grad(
        output,
        source,
        cotangent,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return torch.zeros_like(source) if result is None else result


def _check(params: Tensor, model: object, curvature: str) -> None:
    require_floating("linearize", "params", params)
    require_shape("linearize", "params", params, ("T", "P"))
    require_choice("linearize", "curvature", curvature, CURVATURES)
    if model is not None or curvature == "ggn":
        require_callable("linearize", "model", model, "a function of (T, P) to the outputs")
