"""Solvers of the softmax head by name, one interface: T tasks in, T solutions and a report out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metasparse_ext.implicit.cg import cg
from metasparse_ext.implicit.head_problem import HeadProblem
from metasparse_ext.ops.softmax_head import choose
from metasparse_ext.reference.softmax_head import CONVERGED, ITERATIONS, NOT_FINITE

_HISTORY = 10
_HALVINGS = 30
_ARMIJO = 1e-4
_NEWTON_PRODUCTS = 200


class RawSolution(NamedTuple):
    """weight (T, C, D), iterations (T,) int64, residual (T,) float64, status (T,) int64."""

    weight: Tensor
    iterations: Tensor
    residual: Tensor
    status: Tensor


class Solver(NamedTuple):
    """A way to minimise a :class:`HeadProblem`, and its default effort."""

    solve: Callable[[HeadProblem, float, int], RawSolution]
    tolerance: dict[torch.dtype, float]
    max_iterations: int


def _exact(problem: HeadProblem, tolerance: float, max_iterations: int) -> RawSolution:
    """Newton-CG to machine precision, on whichever side of the duality is smaller."""
    samples, features = problem.features.shape[1:]
    # A product costs N^2 C in the dual and 2 N D C in the primal.
    if samples <= 2 * features:
        return RawSolution(
            *choose("softmax_head")(
                problem.features,
                problem.labels,
                problem.center,
                problem.lam,
                tolerance,
                max_iterations,
            )
        )
    solution = _newton(problem.double(), tolerance, max_iterations)
    return solution._replace(weight=solution.weight.to(problem.center.dtype))


def _gd(problem: HeadProblem, tolerance: float, max_iterations: int) -> RawSolution:
    """Gradient descent with the step 1/L, L = |X|^2 / 2N + lambda (Boehning's bound)."""
    # The decomposition refuses the whole batch for one task's NaN.
    norm = torch.linalg.matrix_norm(problem.features.nan_to_num(), ord=2)
    lipschitz = norm.square() / (2 * problem.features.shape[1]) + problem.lam

    def step(weight: Tensor, gradient: Tensor, running: Tensor) -> Tensor:
        return weight - gradient / lipschitz[:, None, None]

    return _iterate(problem, step, tolerance, max_iterations)


def _newton(problem: HeadProblem, tolerance: float, max_iterations: int) -> RawSolution:
    """Newton's directions by conjugate gradients with closed-form products, and a line search."""

    def step(weight: Tensor, gradient: Tensor, running: Tensor) -> Tensor:
        product = problem.curvature(weight)
        # Quadratic convergence needs a forcing term that shrinks with the gradient.
        worst = torch.where(running, problem.residual(gradient), 0).max()
        direction = cg(
            lambda v: product(v.view_as(weight)).flatten(1),
            -gradient.flatten(1),
            iterations=_NEWTON_PRODUCTS,
            tolerance=min(0.1, max(float(worst), 1e-12)),
        ).solution.view_as(weight)
        return _search(problem, weight, gradient, direction)

    return _iterate(problem, step, tolerance, max_iterations)


def _lbfgs(problem: HeadProblem, tolerance: float, max_iterations: int) -> RawSolution:
    """Limited-memory BFGS with a line search (Nocedal and Wright, algorithm 7.4)."""
    moves: deque[tuple[Tensor, Tensor]] = deque(maxlen=_HISTORY)
    last: list[Tensor] = []

    def step(weight: Tensor, gradient: Tensor, running: Tensor) -> Tensor:
        if last:
            moves.append((weight - last[0], gradient - last[1]))
        last[:] = weight, gradient
        return _search(problem, weight, gradient, -_two_loops(gradient, moves))

    return _iterate(problem, step, tolerance, max_iterations)


def _two_loops(gradient: Tensor, moves: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian that the moves (s, y) suggest, times the gradient."""
    # A task that stands still has s = y = 0: those pairs are left out, task by task.
    weights = [torch.where(_dot(s, y) > 0, 1 / _dot(s, y), 0) for s, y in moves]
    q, alphas = gradient, []
    for (s, y), rho in zip(reversed(moves), reversed(weights), strict=True):
        alphas.append(rho * _dot(s, q))
        q = q - alphas[-1] * y
    if moves:
        s, y = moves[-1]
        q = torch.where(weights[-1] > 0, _dot(s, y) / _dot(y, y), 1) * q
    for (s, y), rho, alpha in zip(moves, weights, reversed(alphas), strict=True):
        q = q + (alpha - rho * _dot(y, q)) * s
    return q


def _search(problem: HeadProblem, weight: Tensor, gradient: Tensor, direction: Tensor) -> Tensor:
    """Halves each task's step until its objective falls enough (Armijo)."""
    start = problem.value(weight)
    slope = _dot(gradient, direction).flatten()
    slack = 4 * torch.finfo(start.dtype).eps * (1 + start.abs())
    length, trial = torch.ones_like(start), weight
    for _ in range(_HALVINGS):
        trial = weight + length[:, None, None] * direction
        value = problem.value(trial)
        # Not "value > bound", so that a task that is not finite does not keep the others halving.
        short = value > start + _ARMIJO * length * slope + slack
        if not bool(short.any()):
            break
        length = torch.where(short, length / 2, length)
    return trial


def _iterate(
    problem: HeadProblem,
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
) -> RawSolution:
    """Repeats a step on the tasks that still run, until none does."""
    weight, rounding = problem.center, problem.rounding()

    def limit() -> Tensor:
        norm = weight.double().square().sum((-2, -1)).sqrt()
        return (rounding * norm).clamp(min=tolerance)

    iterations = torch.zeros_like(problem.labels[:, 0])
    gradient = problem.gradient(weight)
    residual = problem.residual(gradient)
    for _ in range(max_iterations):
        running = residual > limit()
        if not bool(running.any()):
            break
        weight = torch.where(running[:, None, None], step(weight, gradient, running), weight)
        iterations = iterations + running
        gradient = problem.gradient(weight)
        residual = problem.residual(gradient)
    status = torch.where(residual <= limit(), CONVERGED, ITERATIONS)
    status = torch.where(residual.isfinite(), status, NOT_FINITE)
    return RawSolution(weight, iterations, residual, status)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


SOLVERS: dict[str, Solver] = {
    "exact": Solver(_exact, {torch.float32: 1e-9, torch.float64: 1e-13}, 50),
    "newton": Solver(_newton, {torch.float32: 1e-5, torch.float64: 1e-12}, 50),
    "lbfgs": Solver(_lbfgs, {torch.float32: 1e-5, torch.float64: 1e-10}, 500),
    "gd": Solver(_gd, {torch.float32: 1e-5, torch.float64: 1e-10}, 20_000),
}
