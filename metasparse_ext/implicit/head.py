"""The convex head: a classifier's last layer, fitted exactly and differentiated implicitly."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metasparse_ext._arguments import (
    FLOATS,
    LARGEST,
    require,
    require_choice,
    require_count,
    require_like,
    require_number,
    require_shape,
    require_tensor,
)
from metasparse_ext.implicit import head_derivatives
from metasparse_ext.implicit.head_problem import HeadProblem
from metasparse_ext.implicit.head_solvers import SOLVERS, Solver
from metasparse_ext.implicit.transforms import derivative_levels
from metasparse_ext.ops._operands import autocast_is_on, require_strength, without_autocast
from metasparse_ext.ops._register import VmapInfo, fold_into_tasks
from metasparse_ext.reference.softmax_head import CONVERGED, ITERATIONS, NOT_FINITE

_OP = "softmax_head"


class HeadStatus(IntEnum):
    """How one task's fit ended."""

    CONVERGED = CONVERGED
    """The residual met the tolerance, or the rounding of the terms that it is a sum of."""
    ITERATIONS = ITERATIONS
    """The iterations were used up, or rounding kept the objective from falling further."""
    NOT_FINITE = NOT_FINITE
    """NaN or infinity in the task's data. Its solution means nothing; the others are right."""


class HeadReport(NamedTuple):
    """How a fit went.

    Attributes:
        iterations: (T,) int64.
        residual: (T,) float64, norm of the objective's gradient over the root mean square of the
            features' norms.
        status: (T,) int64, one :class:`HeadStatus` a task.
    """

    iterations: Tensor
    residual: Tensor
    status: Tensor


class HeadSolution(NamedTuple):
    """Outcome of :func:`softmax_head`.

    Attributes:
        weight: (T, C, D).
        bias: (T, C), or None when there was none to start from.
        report: how each task's fit went.
    """

    weight: Tensor
    bias: Tensor | None
    report: HeadReport

    def __call__(self, features: Tensor) -> Tensor:
        """Logits, (T, Q, D) -> (T, Q, C)."""
        require_tensor("HeadSolution", "features", features)
        require_like("HeadSolution", "features", features, "weight", self.weight)
        shape = (self.weight.shape[0], "Q", self.weight.shape[-1])
        require_shape("HeadSolution", "features", features, shape)
        scores = features @ self.weight.mT
        return scores if self.bias is None else scores + self.bias[:, None]


def softmax_head(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    lam: float | Tensor,
    solver: str = "exact",
    tolerance: float | None = None,
    max_iterations: int | None = None,
) -> HeadSolution:
    """Fits T softmax classifiers in one call; the fit is differentiable.

    Each task's (W, b) minimises the mean cross-entropy of W x + b on its samples plus
    lambda/2 (|W - weight|^2 + |b - bias|^2), a strictly convex problem with one solution. The
    gradient with respect to ``features``, ``weight``, ``bias`` and ``lam`` is that of the
    minimiser, by the implicit function theorem: one small linear solve whichever solver found it,
    and nothing of the search is kept. Through ``features`` it holds the backbone's cross term. Any
    order in reverse mode, forward mode at most once among them, and under the transforms of
    ``torch.func``; a derivative costs one more solve.

    Solvers: ``"exact"``: Newton-CG to machine precision in float64, in the dual when N <= 2D (the
    problem then has N C unknowns however many features there are), else in the primal.
    ``"newton"``, ``"lbfgs"``, ``"gd"``: Newton-CG, limited-memory BFGS and gradient descent in the
    primal and in the features' dtype. The gradient forms the (T, N, N) Gram matrices. In float32
    its relative error grows to about 1e-11 |x|^2 / lambda: for a lambda that makes this matter, as
    1e-8 does for |x|^2 = 100, take float64. Where samples repeat, that of the gradient in lambda
    was measured to be up to 2e-7 |x|^2 / lambda.

    Args:
        features: (T, N, D), float32 or float64. Under autocast they take the dtype of ``weight``.
        labels: (T, N) int64, in [0, C).
        weight: (C, D) shared by the tasks, or (T, C, D): where the fit starts and is pulled to.
        bias: None, (C,) or (T, C).
        lam: lambda > 0, finite: a number, or a tensor () or (T,), whose values are looked at where
            that stops neither a transform nor a capture.
        solver: one of ``SOLVERS``.
        tolerance: stop a task when its residual is at most this, or at most the rounding of the
            scores, which large ones keep above it. Default: ``SOLVERS[solver]``'s.
        max_iterations: likewise.

    Raises:
        TypeError: a wrong dtype, or a tensor that is not dense.
        NotImplementedError: forward mode inside forward mode.
        ValueError: a wrong shape, device, label, lambda or solver name.

    Source:
        The inner problem of Convex iMAML. With s = (H + lambda I)^-1 g, g the incoming gradient
        and H the loss's Hessian at the solution, ``weight`` gets lambda s, ``lam`` gets
        -<s, W - weight>, and ``features`` get minus the derivative in them of <dLoss/dW, s>.
    """
    require_choice(_OP, "solver", solver, SOLVERS)
    if tolerance is not None:
        require_number(_OP, "tolerance", tolerance, above=0.0)
    if max_iterations is not None:
        require_count(_OP, "max_iterations", max_iterations, most=LARGEST)
    require_tensor(_OP, "features", features)
    require_tensor(_OP, "weight", weight)
    if derivative_levels()[0] > 1:
        raise NotImplementedError(
            "softmax_head: expected forward mode at most once, got it inside itself; hessian(f) "
            "and jacrev(jacrev(f)) differentiate twice"
        )
    if features.dtype != weight.dtype and autocast_is_on(features):
        features = features.to(weight.dtype)
    _check(features, labels, weight, bias, lam)
    chosen = SOLVERS[solver]
    with without_autocast(features):
        problem = _problem(features, labels, weight, bias, lam)
        found, *report = _Search.apply(
            *(t.detach() for t in vars(problem).values()),
            chosen,
            chosen.tolerance[features.dtype] if tolerance is None else tolerance,
            chosen.max_iterations if max_iterations is None else max_iterations,
        )
        attached = head_derivatives.attach(found, problem)
    if bias is None:
        return HeadSolution(attached, None, HeadReport(*report))
    return HeadSolution(attached[..., :-1], attached[..., -1], HeadReport(*report))


class _Search(torch.autograd.Function):
    """A solver's search: a constant to autograd, and one batch of tasks to vmap."""

    @staticmethod
    def forward(
        features: Tensor,
        labels: Tensor,
        center: Tensor,
        lam: Tensor,
        solver: Solver,
        tolerance: float,
        max_iterations: int,
    ) -> tuple[Tensor, ...]:
        problem = HeadProblem(features, labels, center, lam)
        weight, *report = solver.solve(problem, tolerance, max_iterations)
        # a copy, because a solver that takes no step returns its start
        return weight.clone(), *report

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *_: object) -> tuple[None, ...]:
        return (None,) * 7

    @staticmethod
    def vmap(info: VmapInfo, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        return fold_into_tasks(_Search.apply)(info, in_dims, *args)


def _problem(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, lam: float | Tensor
) -> HeadProblem:
    """All arguments with a task axis; the bias becomes the weight of a feature that is one."""
    tasks = features.shape[0]
    center = weight.expand(tasks, *weight.shape[-2:])
    if bias is not None:
        column = bias.expand(tasks, bias.shape[-1])
        center = torch.cat([center, column[..., None]], dim=-1)
        features = F.pad(features, (0, 1), value=1.0)
    if isinstance(lam, Tensor):
        lam = lam.to(features).expand(tasks)
    else:
        # A tensor made from a number on the host would be a copy to the device, and a wait for it.
        lam = features.new_full((tasks,), lam)
    return HeadProblem(features, labels, center, lam)


def _check(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, lam: float | Tensor
) -> None:
    require_tensor(_OP, "features", features, dtypes=FLOATS)
    require_shape(_OP, "features", features, tuple("TND"))
    tasks, samples, width = features.shape
    require(samples > 0, _OP, "features", "of at least one sample", features)
    require_tensor(_OP, "labels", labels, dtypes=(torch.int64,))
    require_like(_OP, "labels", labels, "features", features, dtype=False)
    require_shape(_OP, "labels", labels, (tasks, samples))
    require_tensor(_OP, "weight", weight)
    require_shape(_OP, "weight", weight, ("C", width), (tasks, "C", width))
    classes = weight.shape[-2]
    require(classes > 0, _OP, "weight", "of at least one class", weight)
    require_like(_OP, "weight", weight, "features", features)
    if bias is not None:
        require_tensor(_OP, "bias", bias)
        require_like(_OP, "bias", bias, "features", features)
        require_shape(_OP, "bias", bias, (classes,), (tasks, classes))
    require_strength(_OP, "lam", lam, features.dtype)
    if isinstance(lam, Tensor):
        if not (lam.is_cpu and lam.dim() == 0):
            require_like(_OP, "lam", lam, "features", features, dtype=False)
        require_shape(_OP, "lam", lam, (), (tasks,))
