"""CAVIA: adapt a few context parameters, share everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import LARGEST, refuse, require_count, require_flag, require_size
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.records import Metrics, Source
from metasparse_ext.algorithms.task_networks import AdaptedTasks, detached
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import FiLM


class CAVIA(MetaLearner):
    """Fast context adaptation: the inner loop moves a context vector, the outer loop the network.

    Inner loop from phi_0 = 0: phi_{k+1} = phi_k - a grad_phi L_support(theta, phi_k). The
    meta-gradient is that of L_query(theta, phi_n) in theta, through all steps; the first-order form
    takes phi_n for a constant. The context is never meta-learned: every task starts from zero.

    The context enters by :class:`~metasparse_ext.nn.FiLM`, gamma * h + beta between the pool and
    the ReLU of one block. A step differentiates that block's end and what follows, and theta has no
    task axis, so a step costs less than one of MAML.

    Args:
        model: A network with ``FiLM`` layers of your own, or one of ``metasparse_ext.nn`` without:
            its block ``block`` is then given one.
        inner_lr: a. 1.0 in the public code's defaults, 0.1 in the paper.
        inner_steps: n.
        adapt_steps: Steps that :meth:`adapt` takes; n by default.
        context: Length of the context vector.
        block: Which block is modulated, from 0.
        first_order: Take the adapted context for a constant.

    Source: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via
        Meta-Learning", ICML 2019, and its public code.
    """

    source = Source(
        paper="Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, ICML 2019",
        exact="the context from zero, FiLM before the ReLU of the third block, the meta-gradient "
        "in both orders",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 1.0,
        inner_steps: int = 2,
        adapt_steps: int | None = None,
        context: int = 100,
        block: int = 2,
        first_order: bool = False,
    ) -> None:
        require_size(self.name, "context", context)
        require_count(self.name, "block", block, most=LARGEST)
        require_flag(self.name, "first_order", first_order)
        if isinstance(model, nn.Module) and not _films(model):
            self._modulate(model, block, context)
        super().__init__(model, inner_lr=inner_lr, inner_steps=inner_steps, adapt_steps=adapt_steps)
        self.first_order = first_order

    def adapt(self, support: Samples) -> AdaptedTasks:
        phi = self.start(len(support.labels))
        for _ in range(self.adapt_steps):
            phi = torch.sub(phi, self.gradient(phi, support)[1], alpha=self.inner_lr)
        return self.adapted(phi)

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        trace: list[Tensor] = []
        with torch.enable_grad():
            phi = self.start(len(batch.support.labels)).clone().requires_grad_()
            for _ in range(self.inner_steps):
                losses = self.losses(phi, batch.support)
                (slope,) = torch.autograd.grad(losses.sum(), phi, create_graph=not self.first_order)
                phi = torch.sub(phi, slope, alpha=self.inner_lr)
                trace.append(losses.detach())
            logits = self.logits(phi, batch.query.images)
            losses = self.task_losses(logits, batch.query.labels)
            gradient = self.mean_gradient(losses)
        trace.append(losses.detach())
        return self.finish(gradient, phi, trace, batch.query, detached(logits))

    def _adapted_parameters(self) -> dict[str, Tensor]:
        """The contexts, which are buffers: zero, and no meta-parameters."""
        return {f"{name}.context": film.context for name, film in _films(self.model).items()}

    def _modulate(self, model: nn.Module, block: int, context: int) -> None:
        blocks = getattr(model, "blocks", ())
        found = blocks[block] if block < len(blocks) else None
        modulate = getattr(found, "modulate", None)
        if modulate is None:
            wanted = f"one with a metasparse_ext.nn.FiLM, or with a block {block} to be given one"
            refuse(self.name, "model", wanted, type(model).__name__)
        modulate(context)


def _films(model: nn.Module) -> dict[str, FiLM]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FiLM)}
