"""MAML and its first-order form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metasparse_ext.algorithms.base import AdaptedTasks, MetaLearner, Metrics
from metasparse_ext.implicit import Linearization, linearize

if TYPE_CHECKING:
    from metasparse_ext.data import Samples, TaskBatch


class MAML(MetaLearner):
    """Model-agnostic meta-learning: an initialisation from which a few gradient steps suffice.

    Inner loop: phi_0 = theta, phi_{k+1} = phi_k - a grad L_support(phi_k). With H_k the Hessian of
    L_support at phi_k, the meta-gradient of a task is

        (I - a H_0) (I - a H_1) ... (I - a H_{n-1}) grad L_query(phi_n),

    applied from the right, one Hessian-vector product a step, so the graph of a step is freed as
    soon as it was used. The first-order form leaves out the Hessians.

    Args:
        model: A network from images to logits.
        inner_lr: a.
        inner_steps: n.
        adapt_steps: Steps that :meth:`adapt` takes; n by default.
        first_order: Leave out the Hessians (FOMAML).
        recompute: Keep only the points phi_k and build each step's graph again when it is needed:
            the memory of one step whatever n is, for one more gradient a step. The result is the
            same.

    Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
        Networks", ICML 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        adapt_steps: int | None = None,
        first_order: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(model, inner_lr=inner_lr, inner_steps=inner_steps, adapt_steps=adapt_steps)
        self.first_order, self.recompute = first_order, recompute

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, first_order={self.first_order}"

    def adapt(self, support: Samples) -> AdaptedTasks:
        phi = self.start(support.images.shape[0])
        for _ in range(self.adapt_steps):
            phi = torch.sub(phi, self.gradient(phi, support)[1], alpha=self.inner_lr)
        return self.adapted(phi)

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        phi, path, trace = self.start(batch.support.images.shape[0]), [], []
        for _ in range(self.inner_steps):
            loss, gradient, step = self._step(phi, batch.support)
            trace.append(loss)
            path.append(step)
            phi = torch.sub(phi, gradient, alpha=self.inner_lr)
        loss, gradient, logits = self.gradient(phi, batch.query)
        trace.append(loss)
        if not self.first_order:
            gradient = self._walk_back(path, gradient, batch.support)
        return self.finish(gradient, phi, trace, batch.query, logits)

    def _step(
        self, phi: Tensor, support: Samples
    ) -> tuple[Tensor, Tensor, Linearization | Tensor | None]:
        """Losses and gradients at phi, and what the way back needs of this step."""
        if self.first_order or self.recompute:
            loss, gradient, _ = self.gradient(phi, support)
            return loss, gradient, None if self.first_order else phi
        step = self._linearize(phi, support)
        return step.loss, step.gradient, step

    def _walk_back(
        self, path: list[Linearization | Tensor], gradient: Tensor, support: Samples
    ) -> Tensor:
        """Applies (I - a H_k) from the last step to the first; empties the path to free graphs."""
        while path:
            step = path.pop()
            if isinstance(step, Tensor):
                step = self._linearize(step, support)
            gradient = torch.sub(gradient, step.hvp(gradient), alpha=self.inner_lr)
        return gradient

    def _linearize(self, phi: Tensor, support: Samples) -> Linearization:
        return linearize(lambda point: self.losses(point, support), phi)


class FOMAML(MAML):
    """First-order MAML: :class:`MAML` with ``first_order=True``."""

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        adapt_steps: int | None = None,
    ) -> None:
        super().__init__(
            model,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            adapt_steps=adapt_steps,
            first_order=True,
        )
