"""The exact softmax head of T tasks and its implicit gradient, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Task states; `metasparse_ext.implicit.HeadStatus` gives them to users.
CONVERGED, ITERATIONS, NOT_FINITE = 0, 1, 3

_ROUNDING = 2.0**-50
# Of the line search: how many lengths are tried, the part of the predicted fall that counts as one,
# and the part of the slope that counts as none.
_TRIALS, _ARMIJO, _LEVEL = 40, 1e-4, 0.1


def _curvature(probabilities: Tensor, gram: Tensor, lam: Tensor) -> Tensor:
    """lambda + S K, (T, N C, N C): S = (diag(p) - p p') / N sample by sample, K the Gram matrix."""
    tasks, samples, classes = probabilities.shape
    outer = probabilities[..., None] * probabilities[..., None, :]
    s = (probabilities.diag_embed() - outer) / samples
    size = samples * classes
    sk = torch.einsum("tnab,tnm->tnamb", s, gram).reshape(tasks, size, size)
    return sk + lam[:, None, None] * torch.eye(size, dtype=sk.dtype, device=sk.device)


def _solve(matrix: Tensor, rhs: Tensor) -> Tensor:
    solution, _ = torch.linalg.solve_ex(matrix, rhs.flatten(1))
    return solution.view_as(rhs)


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(..., C) zeros and ones; unlike torch's, it reads nothing on the host."""
    every = torch.arange(classes, device=labels.device)
    return (labels.unsqueeze(-1) == every).to(dtype)


def softmax_head(
    features: Tensor,
    labels: Tensor,
    center: Tensor,
    lam: Tensor,
    tolerance: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimises (1/N) sum_i CE(W x_i, y_i) + lambda/2 |W - center|^2 for each task.

    Newton steps on the dual coefficients A of W = center + A'X, in float64; each goes as far as the
    objective falls steeply. features (T, N, D), labels (T, N), center (T, C, D), lam (T,) -> weight
    (T, C, D), iterations (T,), residual (T,), status (T,). Nothing is read on the host.
    """
    x, lam = features.double(), lam.double()
    classes = center.shape[1]
    gram = x @ x.mT
    start = x @ center.double().mT
    hot = one_hot(labels, classes, x.dtype)
    squares = gram.diagonal(dim1=1, dim2=2)
    trace = squares.sum(-1)
    scale = squares.mean(-1).sqrt()

    def objective(dual: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(T,), and the gradient (T, N, C) in W's products with the features."""
        scores = start + image
        loss = (scores.logsumexp(-1) - (hot * scores).sum(-1)).mean(-1)
        gradient = (scores.softmax(-1) - hot) / x.shape[1] + lam[:, None, None] * dual
        squared = (dual * image).sum((-2, -1)).clamp(min=0)  # rounding may make it negative
        return loss + lam / 2 * squared, gradient

    dual = torch.zeros_like(start)
    image = torch.zeros_like(start)
    iterations = torch.zeros_like(labels[:, 0])
    residual, running = torch.full_like(lam, torch.inf), torch.ones_like(lam, dtype=torch.bool)
    for step in range(max_iterations + 1):
        now, gradient = objective(dual, image)
        norm = (gradient * (gram @ gradient)).sum((-2, -1))
        # Where samples repeat or outnumber the features, rounding hides a norm behind this.
        hidden = _ROUNDING * trace * gradient.square().sum((-2, -1))
        norm = torch.maximum(norm, hidden).sqrt()
        residual = torch.where(norm == 0, 0, norm / scale)
        # The terms that scores are sums of: their rounding is as far as the residual can fall.
        squared = (squares[..., None] * dual.square()).sum((-2, -1))
        terms = (start + image).square().sum((-2, -1)) + trace * squared
        rounding = _ROUNDING * (terms / x.shape[1]).sqrt()
        running = residual > rounding.clamp(min=tolerance)
        if step == max_iterations:
            break
        probabilities = (start + image).softmax(-1)
        direction = _solve(_curvature(probabilities, gram, lam), -gradient)
        moved = gram @ direction
        slack = _ROUNDING * (1 + now.abs() + lam * squared)
        length = _length(objective, dual, image, direction, moved, slack)
        length = torch.where(running, length, 0)[:, None, None]
        dual, image = dual + length * direction, image + length * moved
        iterations = iterations + running

    weight = center + (dual.mT @ x).to(center.dtype)
    status = torch.where(running, ITERATIONS, CONVERGED)
    status = torch.where(residual.isfinite(), status, NOT_FINITE)
    return weight, iterations, residual, status


def _length(
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    dual: Tensor,
    image: Tensor,
    direction: Tensor,
    moved: Tensor,
    slack: Tensor,
) -> Tensor:
    """(T,): where the objective, which is convex, has fallen along the direction and is level.

    A fall alone is not enough: where the scores of two classes cross, a step that ends beyond sees
    no curvature, and Newton's iteration crosses there again and again. 0 where nothing falls.
    """
    before, gradient = objective(dual, image)
    slope = (gradient * moved).sum((-2, -1))
    shortest, longest = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    length = torch.ones_like(slope)
    level = torch.zeros_like(slope, dtype=torch.bool)
    for _ in range(_TRIALS):
        t = length[:, None, None]
        value, gradient = objective(dual + t * direction, image + t * moved)
        ahead = (gradient * moved).sum((-2, -1))
        falls = value <= before + _ARMIJO * length * slope + slack
        level = level | falls & (ahead.abs() <= _LEVEL * slope.abs())
        short = falls & (ahead < 0)
        shortest = torch.where(short & ~level, length, shortest)
        longest = torch.where(short | level, longest, length)
        middle = torch.where(longest.isinf(), 2 * length, (shortest + longest) / 2)
        length = torch.where(level, length, middle)
    return torch.where(level, length, shortest)


def softmax_head_grad(
    grad: Tensor, weight: Tensor, features: Tensor, labels: Tensor, center: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pulls the gradient in the minimiser back to features, center and lambda.

    With s = (H + lambda)^-1 grad: center gets lambda s, lambda gets -<s, weight - center>, and the
    features get minus the derivative of <gradient of the loss, s> in them.
    """
    x, w, q = features.double(), weight.double(), grad.double()
    wide = lam.double()[:, None, None]
    probabilities = (x @ w.mT).softmax(-1)
    hot = one_hot(labels, w.shape[1], x.dtype)

    def curve(scores: Tensor) -> Tensor:
        product = probabilities * scores
        return (product - probabilities * product.sum(-1, keepdim=True)) / x.shape[1]

    gram = x @ x.mT
    solution = _solve(_curvature(probabilities, gram, lam.double()), curve(x @ q.mT))
    s = (q - solution.mT @ x) / wide
    features_grad = -((probabilities - hot) / x.shape[1] @ s + curve(x @ s.mT) @ w)
    lam_grad = -(s * (w - center)).sum((-2, -1))
    return features_grad.to(features), (wide * s).to(center), lam_grad.to(lam)
