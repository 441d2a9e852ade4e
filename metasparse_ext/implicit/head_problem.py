"""The convex problem of a classifier's last layer, for T tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


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
        scale = self.features.double().square().sum(-1).mean(-1).sqrt()
        norm = gradient.double().square().sum((-2, -1)).sqrt()
        return torch.where(norm == 0, 0, norm / scale)

    @property
    def _wide_lam(self) -> Tensor:
        return self.lam[:, None, None]
