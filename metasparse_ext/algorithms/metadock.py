"""MetaDOCK: kernels that each task switches on and off, under a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    refuse,
    require_choice,
    require_number,
    require_size,
    require_type,
)
from metasparse_ext.algorithms.imaml import IMAML, Mode, Penalty
from metasparse_ext.algorithms.records import Source
from metasparse_ext.algorithms.slots import Slots
from metasparse_ext.algorithms.task_networks import run_tasks
from metasparse_ext.data import Inputs
from metasparse_ext.implicit import Layout
from metasparse_ext.implicit.linearize import Curvature
from metasparse_ext.nn import MaskedConv2d, ScoreMask
from metasparse_ext.nn.masks import holding_gates
from metasparse_ext.ops.score_gate import add_budget_gradient, score_gate

BudgetSchedule = Literal["constant", "exponential"]

# The scores of all layers in the layout of the buffer.
_BLOCK = "scores"


class MetaDOCK(IMAML):
    """iMAML on weights and kernel scores together, with a budget on the kernels in use.

    Every kernel (o, i) of every convolution has a score, adapted per task like the weights; it is
    in use where the score is above zero. Meta-parameters are the weights theta and the meta masks
    z, task parameters phi and the task masks zeta. The gradients of support and query add those of
    the budget loss (:class:`~metasparse_ext.algorithms.metadock.Budget`) to the scores. The Hessian
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
        lambda1: Strength of the proximal term on the weights.
        lambda2: Strength of the proximal term on the scores; that of the weights by default. In
            :meth:`adapt` a given ``adapt_lam`` replaces both: in the official code they are one
            number, in training and in tests.
        lambda3: Weight of the budget loss after ``total_iterations``; it grows linearly from 0.
        lambda4: Weight of the L1 norm of the scores. 1e-4 in the paper, 1e-6 in its code.
        total_iterations: Meta-iterations over which lambda3 grows.
        budget_schedule: "constant", or "exponential" for V0(t) = max(V0, exp(-4 t / total)).

    Attributes:
        budget: V0.

    Source: Chavan, Tiwari, Bamba, Gupta, "Dynamic Kernel Selection for Improved Generalization and
        Memory Efficiency in Meta-learning", CVPR 2022, supplement and public code.
    """

    source = Source(
        paper="Chavan, Tiwari, Bamba, Gupta, CVPR 2022",
        exact="gates, budget, inner loop and solve of the public code; the supplement's reading "
        "as mode=paper",
        reconstructed="a checkpoint counts only once the budget holds; validation classes choose "
        "it, not test classes; the guard of the solve, as in imaml",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 5e-3,
        inner_steps: int = 16,
        adapt_steps: int | None = None,
        mode: Mode = "official",
        budget: float = 0.5,
        lambda1: float = 0.5,
        lambda2: float | None = None,
        lambda3: float = 50.0,
        lambda4: float = 1e-4,
        total_iterations: int = 60_000,
        budget_schedule: BudgetSchedule = "constant",
        adapt_lam: float | None = None,
        cg_steps: int = 5,
        damping: float | None = None,
        curvature: Curvature = "hessian",
    ) -> None:
        require_number(self.name, "lambda1", lambda1, above=0)
        require_type(self.name, "model", model, nn.Module, "an nn.Module")
        _make_scores(self.name, model)
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
        require_number(self.name, "lambda2", self.lambda2, above=0)
        require_number(self.name, "budget", budget, least=0, most=1)
        require_number(self.name, "lambda3", lambda3, least=0)
        require_number(self.name, "lambda4", lambda4, least=0)
        require_size(self.name, "total_iterations", total_iterations)
        require_choice(self.name, "budget_schedule", budget_schedule, BudgetSchedule)
        self.budget = budget
        self.budget_loss = Budget(budget, lambda3, lambda4, total_iterations, budget_schedule)
        self._count_kernels()

    def _lay_out_anew(self, layout: Layout) -> None:
        self._count_kernels()

    def _count_kernels(self) -> None:
        scores = self._meta_scores()
        self.kernels = sum(each.numel() for each in scores.values())
        weights = {n: p for n, p in super()._adapted_parameters().items() if n not in scores}
        block = torch.empty(self.kernels, device="meta")
        # The buffer as weights and one block of scores, and the masks of that block.
        self._parts, self._gates = (
            Layout.of(weights | {_BLOCK: block}),
            Layout.of(scores or {_BLOCK: block}),
        )
        if self.kernels == 0:
            wanted = "one with a ScoreMask whose scores require grad"
            refuse(self.name, "model", wanted, f"{type(self.model).__name__} without")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, budget={self.budget:g}"

    def meta_active(self) -> Tensor:
        """() the fraction of kernels that the meta masks leave in use."""
        with torch.no_grad():
            return active(torch.cat([s.flatten() for s in self._meta_scores().values()])).mean()

    def budget_met(self, tol: float = 0.02) -> bool:
        """Whether the meta masks keep the budget to within ``tol``: a checkpoint may be chosen."""
        require_number(self.name, "tol", tol, least=0)
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

    def logits(self, phi: Tensor, images: Inputs) -> Any:
        """As every learner's; the gates of all layers are one op, where the model allows it."""
        if not (self.slots or Slots(self.model)).task_aware:
            return super().logits(phi, images)
        parameters = self._parts.unflatten(phi, zero=self.zero)
        gates = self._gates.unflatten(score_gate(parameters.pop(_BLOCK)))
        maskers = [self.model.get_submodule(name.rpartition(".")[0]) for name in gates]
        with holding_gates(cast(list[ScoreMask], maskers), list(gates.values())):
            return run_tasks(self.name, self.model, parameters, images, self.slots)

    def _penalty(self) -> Penalty:
        """The budget's gradient, added to that of the scores; its ramp is taken once."""
        scores = slice(self.layout.numel - self.kernels, None)
        offset, share = self.budget_loss.slope(self.iteration, self.start(1)[:, scores])

        def add_budget(gradient: Tensor, phi: Tensor) -> None:
            l1 = self.budget_loss.lambda4
            add_budget_gradient(gradient[:, scores], phi[:, scores], offset, share, l1)

        return add_budget

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


def _make_scores(owner: str, model: nn.Module) -> None:
    """Gives every masked convolution that has no learned scores some."""
    layers = [layer for layer in model.modules() if isinstance(layer, MaskedConv2d)]
    if not layers:
        wanted = "one with MaskedConv2d, whose kernels get scores"
        refuse(owner, "model", wanted, f"{type(model).__name__}; nn.sparsify(model) makes them")
    for layer in layers:
        if not isinstance(layer.masker, ScoreMask):
            layer.masker = ScoreMask.like(layer.weight)


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
    schedule: BudgetSchedule = "constant"

    def loss(self, scores: Tensor, done: Tensor) -> Tensor:
        """(T,) the value for scores (T, K) after ``done`` meta-iterations, an integer tensor ()."""
        weight, goal = self._at(done, scores)
        return weight * (active(scores).mean(-1) - goal) ** 2 + self.lambda4 * scores.abs().sum(-1)

    def gradient(self, scores: Tensor, done: Tensor) -> Tensor:
        """(T, K) the gradient of :meth:`loss`."""
        gradient = torch.zeros_like(scores)
        add_budget_gradient(gradient, scores, *self.slope(done, scores), self.lambda4)
        return gradient

    def slope(self, done: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient in a gate, without the L1 norm: a + b times the open gates of the task.

        Two tensors () for scores of the dtype and the K of ``like`` (..., K): the same in every
        step of a meta-iteration.
        """
        weight, goal = self._at(done, like)
        per_kernel = 2 * weight / like.shape[-1]
        return -goal * per_kernel, per_kernel / like.shape[-1]

    def _at(self, done: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of the budget and V0 at an iteration, as tensors on the device."""
        progress = (done.to(like.dtype) / self.iterations).clamp(max=1)
        goal = torch.full_like(progress, self.target)
        if self.schedule == "exponential":
            goal = goal.maximum(torch.exp(-4 * progress))
        return self.lambda3 * progress, goal


def active(scores: Tensor) -> Tensor:
    """Zeros and ones in the dtype of the scores: which kernels the gate lets through."""
    return score_gate(scores)
