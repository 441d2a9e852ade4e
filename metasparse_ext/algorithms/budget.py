"""The budget on active kernels that MetaDOCK's masks are trained to meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("constant", "exponential")


@dataclass(frozen=True)
class Budget:
    """The loss on the scores (T, K) of all kernels of T networks, and its gradient.

    With V the fraction of active kernels, 1[sigmoid(score) > 0.5], and t of ``iterations`` done,

        loss = lambda3 t / iterations (V - V0(t))^2 + lambda4 sum |score|,

    whose gradient takes the threshold for the identity and the logistic for what it is.

    Attributes:
        target: V0, the fraction of kernels to keep.
        lambda3: Weight of the budget at the end; it grows linearly from 0.
        lambda4: Weight of the L1 norm of the scores.
        iterations: Meta-iterations of the whole training.
        schedule: "constant": V0(t) = V0. "exponential": V0(t) = max(V0, exp(-4 t / iterations)).

    Source: MetaDOCK (Chavan et al., CVPR 2022), supplement, algorithm 2, and its public code.
    """

    target: float
    lambda3: float
    lambda4: float
    iterations: int
    schedule: str = "constant"

    def loss(self, scores: Tensor, done: Tensor) -> Tensor:
        """(T,) the value for scores (T, K) after ``done`` meta-iterations, an integer tensor ()."""
        weight, goal = self._at(done, scores)
        return weight * (active(scores).mean(-1) - goal) ** 2 + self.lambda4 * scores.abs().sum(-1)

    def gradient(self, scores: Tensor, done: Tensor) -> Tensor:
        """(T, K) the gradient of :meth:`loss`."""
        weight, goal = self._at(done, scores)
        slope = 2 * weight * (active(scores).mean(-1, keepdim=True) - goal) / scores.shape[-1]
        logistic = scores.sigmoid()
        return slope * (logistic * (1 - logistic)) + self.lambda4 * scores.sign()

    def _at(self, done: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of the budget and V0 at an iteration, on the device: nothing is read."""
        progress = (done.to(like.dtype) / self.iterations).clamp(max=1)
        goal = torch.full_like(progress, self.target)
        if self.schedule == "exponential":
            goal = goal.maximum(torch.exp(-4 * progress))
        return self.lambda3 * progress, goal


def active(scores: Tensor) -> Tensor:
    """Zeros and ones in the dtype of the scores: which kernels the gate lets through."""
    return (scores.sigmoid() > 0.5).to(scores.dtype)
