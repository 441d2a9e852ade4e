"""The convex problem of a classifier's last layer, for T tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from metasparse_ext._arguments import (
    require_floating,
    require_like,
    require_shape,
    require_tensor,
)


@dataclass(frozen=True)
class HeadProblem:
    """F(W) = (1/N) sum_i CE(W x_i, y_i) + lambda/2 |W - center|^2, task by task.

    Attributes:
        features: (T, N, D).
        labels: (T, N) int64 in [0, C).
        center: (T, C, D) where the proximal term pulls to, and where solvers start.
        lam: (T,) positive, which makes F strictly convex.
    """

    features: Tensor
    labels: Tensor
    center: Tensor
    lam: Tensor

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require_tensor("HeadProblem", name, value)
        require_floating("HeadProblem", "features", self.features)
        require_tensor("HeadProblem", "labels", self.labels, dtypes=(torch.int64,))
        require_shape("HeadProblem", "features", self.features, tuple("TND"))
        tasks, samples, width = self.features.shape
        shapes = {"labels": (tasks, samples), "center": (tasks, "C", width), "lam": (tasks,)}
        for name, shape in shapes.items():
            floating = name != "labels"
            require_like(
                "HeadProblem", name, getattr(self, name), "features", self.features, dtype=floating
            )
            require_shape("HeadProblem", name, getattr(self, name), shape)

    def double(self) -> HeadProblem:
        """The same problem in float64."""
        return replace(
            self,
            features=self.features.double(),
            center=self.center.double(),
            lam=self.lam.double(),
        )

    def value(self, weight: Tensor) -> Tensor:
        """F, (T, C, D) -> (T,)."""
        scores = self.features @ weight.mT
        loss = F.cross_entropy(scores.mT, self.labels, reduction="none").mean(-1)
        return loss + self.lam / 2 * (weight - self.center).square().sum((-2, -1))

    def gradient(self, weight: Tensor) -> Tensor:
        """The gradient of F, (T, C, D) -> (T, C, D)."""
        slopes = (self.features @ weight.mT).softmax(-1)
        classes = torch.arange(weight.shape[-2], device=slopes.device)
        # not one_hot, which looks at the labels on the host
        slopes = slopes - (self.labels[..., None] == classes).to(slopes.dtype)
        loss = slopes.mT @ self.features / self.features.shape[-2]
        return loss + self._wide_lam * (weight - self.center)

    def curvature(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Products of directions (T, C, D) with the Hessian of F at ``weight``, in closed form.

        With U = X V' and P the probabilities, H V = R' X / N + lambda V, where
        R = P o (U - rowsum(P o U)).
        """
        probabilities = (self.features @ weight.mT).softmax(-1)

        def product(direction: Tensor) -> Tensor:
            scores = self.features @ direction.mT
            mean = (probabilities * scores).sum(-1, keepdim=True)
            slopes = probabilities * (scores - mean)
            loss = slopes.mT @ self.features / self.features.shape[-2]
            return loss + self._wide_lam * direction

        return product

    def residual(self, gradient: Tensor) -> Tensor:
        """Gradients (T, C, D) -> (T,) float64: their norm over the root mean square of |x_i|.

        The loss's gradient is at most sqrt(2) in this measure, whatever the features' scale.
        """
        norm = gradient.double().square().sum((-2, -1)).sqrt()
        return torch.where(norm == 0, 0, norm / self._scale)

    def rounding(self) -> Tensor:
        """How far the residual can fall, for a weight of norm one, (T,) float64.

        That is the rounding of what the gradient is made of: scores of up to |x| |W|, and lambda W.
        """
        sizes = self._scale + self.lam.double() / self._scale
        return 4 * torch.finfo(self.center.dtype).eps * sizes

    @property
    def _scale(self) -> Tensor:
        """(T,) float64, the root mean square of |x_i|."""
        return self.features.double().square().sum(-1).mean(-1).sqrt()

    @property
    def _wide_lam(self) -> Tensor:
        return self.lam[:, None, None]
