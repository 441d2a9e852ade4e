"""The ridge head: a classifier's last layer by ridge regression on its labels, in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metasparse_ext._arguments import (
    FLOATS,
    LARGEST,
    require,
    require_count,
    require_flag,
    require_like,
    require_shape,
    require_tensor,
)
from metasparse_ext.ops._operands import require_strength, without_autocast
from metasparse_ext.reference.softmax_head import one_hot

_OP = "ridge_head"


def ridge_head(
    features: Tensor, labels: Tensor, classes: int, *, lam: float | Tensor, bias: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Fits T linear classifiers in one call; the fit is differentiable, to any order.

    Each task's (W, b) minimises |X W' + b - Y|^2 / N + lambda (|W|^2 + |b|^2), with the rows of Y
    the labels as unit vectors. The solution is that of one positive definite system, by Cholesky's
    factors in float64: of N unknowns where N <= D (the Woodbury identity), else of D.

    Args:
        features: X, (T, N, D), float32 or float64.
        labels: (T, N) int64, in [0, C); a class without samples gets a weight of zero.
        classes: C.
        lam: lambda > 0, finite: a number, or a tensor (), whose value is looked at where that stops
            neither a transform nor a capture.
        bias: Whether there is a b.

    Returns:
        W (T, C, D), and b (T, C) or None, of the features' dtype.

    Raises:
        TypeError: a wrong dtype, or a tensor that is not dense.
        ValueError: a wrong shape, device or lambda.

    Source:
        Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form
        solvers", ICLR 2019, scaled by N as in its official code.
    """
    require_tensor(_OP, "features", features, dtypes=FLOATS)
    require_shape(_OP, "features", features, tuple("TND"))
    require(features.shape[1] > 0, _OP, "features", "of at least one sample", features)
    require_tensor(_OP, "labels", labels, dtypes=(torch.int64,))
    require_like(_OP, "labels", labels, "features", features, dtype=False)
    require_shape(_OP, "labels", labels, tuple(features.shape[:2]))
    require_count(_OP, "classes", classes, least=1, most=LARGEST)
    require_flag(_OP, "bias", bias)
    require_strength(_OP, "lam", lam, features.dtype)
    if isinstance(lam, Tensor):
        if not lam.is_cpu:
            require_like(_OP, "lam", lam, "features", features, dtype=False)
        require_shape(_OP, "lam", lam, ())
    with without_autocast(features):
        weight = _fit(features.double(), labels, classes, lam, bias).to(features.dtype)
    return (weight[..., :-1], weight[..., -1]) if bias else (weight, None)


def _fit(x: Tensor, labels: Tensor, classes: int, lam: float | Tensor, bias: bool) -> Tensor:
    """(T, C, D), or with a bias as the last column (T, C, D + 1)."""
    if bias:
        x = F.pad(x, (0, 1), value=1.0)
    x = x / x.shape[1] ** 0.5
    y = one_hot(labels, classes, x.dtype) / x.shape[1] ** 0.5
    if x.shape[1] <= x.shape[2]:
        # X' (X X' + lambda)^-1 Y is (L^-1 X)' (L^-1 Y)
        factor = _factor(x @ x.mT, lam)
        solved = torch.linalg.solve_triangular(factor, torch.cat([x, y], -1), upper=False)
        x, y = solved.split([x.shape[-1], classes], -1)
        return y.mT @ x
    factor = _factor(x.mT @ x, lam)
    half = torch.linalg.solve_triangular(factor, x.mT @ y, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).mT


def _factor(gram: Tensor, lam: float | Tensor) -> Tensor:
    """L with L L' = gram + lambda; a task with NaN spoils itself alone, and raises nothing."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.cholesky_ex(gram + lam * eye).L
