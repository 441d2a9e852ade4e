"""MetaDOCK: kernels that each task switches on and off, under a budget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metasparse_ext.algorithms.budget import SCHEDULES, Budget, active
from metasparse_ext.algorithms.imaml import IMAML
from metasparse_ext.nn import MaskedConv2d, ScoreMask


class MetaDOCK(IMAML):
    """iMAML on weights and kernel scores together, with a budget on the kernels in use.

    Every kernel (o, i) of every convolution has a score, adapted per task like the weights; it is
    in use where the score is above zero. Meta-parameters are the weights theta and the meta masks
    z, task parameters phi and the task masks zeta. The gradients of support and query add those of
    the budget loss (:class:`~metasparse_ext.algorithms.budget.Budget`) to the scores. The Hessian
    of the implicit step is that of the support cross-entropy alone, in phi and zeta jointly.

    The official code computes the gradients of weights and of scores in two passes with the same
    forward values; one pass here gives both.

    The published procedure trains the dense network with :class:`~metasparse_ext.algorithms.IMAML`
    first and starts from it: pass that network. The masker of each of its ``MaskedConv2d`` is
    replaced by a :class:`~metasparse_ext.nn.ScoreMask` that starts with all kernels in use, unless
    it is a ``ScoreMask`` already. A model with plain convolutions goes through ``nn.sparsify``
    first.

    Args:
        model: A network of ``MaskedConv2d``, from images to logits. Its maskers are changed.
        inner_lr, inner_steps, adapt_steps, mode, adapt_lam, cg_steps, damping, curvature: As in
            :class:`~metasparse_ext.algorithms.IMAML`.
        budget: V0, the fraction of all kernels to keep.
        lambda1: Strength of the proximal term on the weights; ``adapt_lam`` replaces it.
        lambda2: Strength of the proximal term on the scores; that of the weights by default.
        lambda3: Weight of the budget loss after ``total_iterations``; it grows linearly from 0.
        lambda4: Weight of the L1 norm of the scores. 1e-4 in the paper, 1e-6 in its code.
        total_iterations: Meta-iterations over which lambda3 grows.
        budget_schedule: "constant", or "exponential" for V0(t) = max(V0, exp(-4 t / total)).

    Attributes:
        budget: V0.

    Source: Chavan, Tiwari, Bamba, Gupta, "Dynamic Kernel Selection for Improved Generalization and
        Memory Efficiency in Meta-learning", CVPR 2022, supplement and public code.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 5e-3,
        inner_steps: int = 16,
        adapt_steps: int | None = None,
        mode: str = "official",
        budget: float = 0.5,
        lambda1: float = 0.5,
        lambda2: float | None = None,
        lambda3: float = 50.0,
        lambda4: float = 1e-4,
        total_iterations: int = 60_000,
        budget_schedule: str = "constant",
        adapt_lam: float | None = None,
        cg_steps: int = 5,
        damping: float | None = None,
        curvature: str = "hessian",
    ) -> None:
        if isinstance(model, nn.Module):
            _make_scores(model)
        super().__init__(
            model,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            adapt_steps=adapt_steps,
            mode=mode,
            lam=lambda1,
            adapt_lam=adapt_lam,
            cg_steps=cg_steps,
            damping=damping,
            curvature=curvature,
        )
        self.lambda2 = lambda1 if lambda2 is None else lambda2
        self._require(self.lambda2 > 0, "lambda2", "above 0", lambda2)
        self._require(0 <= budget <= 1, "budget", "in [0, 1]", budget)
        self._require(lambda3 >= 0, "lambda3", "at least 0", lambda3)
        self._require(lambda4 >= 0, "lambda4", "at least 0", lambda4)
        self._require(total_iterations > 0, "total_iterations", "above 0", total_iterations)
        self._require(
            budget_schedule in SCHEDULES, "budget_schedule", f"one of {SCHEDULES}", budget_schedule
        )
        self.budget = budget
        self.budget_loss = Budget(budget, lambda3, lambda4, total_iterations, budget_schedule)
        self.kernels = sum(scores.numel() for scores in self._meta_scores().values())
        if self.kernels == 0:
            raise ValueError("MetaDOCK: no scores to learn: none of the ScoreMasks requires grad")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, budget={self.budget:g}"

    def meta_active(self) -> Tensor:
        """() the fraction of kernels that the meta masks leave in use."""
        with torch.no_grad():
            return active(torch.cat([s.flatten() for s in self._meta_scores().values()])).mean()

    def budget_met(self, tol: float = 0.02) -> bool:
        """Whether the meta masks keep the budget to within ``tol``: a checkpoint may be chosen."""
        return abs(float(self.meta_active()) - self.budget) <= tol

    def _meta_scores(self) -> dict[str, Tensor]:
        adapted = super()._adapted_parameters()
        names = [
            f"{name}.masker.scores" if name else "masker.scores"
            for name, layer in self.model.named_modules()
            if isinstance(layer, MaskedConv2d)
        ]
        return {name: adapted[name] for name in names if name in adapted}

    def _adapted_parameters(self) -> dict[str, Tensor]:
        """Weights, then all scores: those of T tasks are one block of the flat buffer."""
        scores = self._meta_scores()
        weights = super()._adapted_parameters()
        return {n: p for n, p in weights.items() if n not in scores} | scores

    def _penalised(self, gradient: Tensor, phi: Tensor) -> Tensor:
        scores = slice(self.layout.numel - self.kernels, None)
        gradient[:, scores] += self.budget_loss.gradient(phi[:, scores], self.iteration)
        return gradient

    def _proximal(self) -> float | Tensor:
        if self.lambda2 == self.lam:
            return self.lam
        scores = next(iter(self._meta_scores().values()))
        return torch.cat(
            [
                scores.new_full((self.layout.numel - self.kernels,), self.lam),
                scores.new_full((self.kernels,), self.lambda2),
            ]
        )


def _make_scores(model: nn.Module) -> None:
    """Gives every masked convolution scores to learn, where it has none."""
    layers = [layer for layer in model.modules() if isinstance(layer, MaskedConv2d)]
    if not layers:
        raise ValueError(
            "MetaDOCK: model has no MaskedConv2d whose kernels could be scored; "
            "metasparse_ext.nn.sparsify(model) makes them"
        )
    for layer in layers:
        if not isinstance(layer.masker, ScoreMask):
            layer.masker = ScoreMask.like(layer.weight)
