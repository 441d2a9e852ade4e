"""ANIL: MAML on the last layer, also known as Convex MAML."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metasparse_ext.algorithms.head_learner import HeadLearner, head_logits
from metasparse_ext.algorithms.records import Source


class ANIL(HeadLearner):
    """MAML whose inner loop moves the head alone, by gradient descent, and is differentiated fully.

    w_{k+1} = w_k - a grad_w L_support(w_k; psi), with w the head and psi the backbone; the
    meta-gradient is that of L_query(w_n; psi) in w_0 and psi through all n steps. The features are
    computed once, and a step costs two small matrix products.

    Args:
        model: A network whose output is the output of its head.
        head: Name of the head; the last ``nn.Linear`` by default.
        inner_lr: a.
        inner_steps: n.
        adapt_steps: Steps that :meth:`adapt` takes; n by default.

    Source: Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020 (ANIL). The
        name Convex MAML is that of a report that gives no hyperparameters; the defaults are those
        common for ANIL.
    """

    source = Source(
        paper="Raghu, Raghu, Bengio, Vinyals, ICLR 2020; as Convex MAML in a report that gives no "
        "hyperparameters",
        exact="gradient steps on the head, differentiated through all of them",
        reconstructed="the hyperparameters of Convex MAML; the defaults are those common for ANIL",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str | None = None,
        inner_lr: float = 0.1,
        inner_steps: int = 5,
        adapt_steps: int | None = None,
    ) -> None:
        super().__init__(
            model,
            head=head,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            adapt_steps=adapt_steps,
        )

    def fit(
        self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        tasks, samples = labels.shape
        weight = weight.expand(tasks, *weight.shape)
        bias = None if bias is None else bias.expand(tasks, *bias.shape)
        # F.one_hot reads the labels on the host, which a captured graph cannot.
        classes = torch.arange(weight.shape[-2], device=labels.device)
        hot = (labels.unsqueeze(-1) == classes).to(features.dtype)
        loss = None
        for _ in range(steps):
            logits = head_logits(features, weight, bias)
            loss = self.task_losses(logits, labels)
            # The gradient of the mean cross-entropy, written out: one level of autograd less.
            slopes = (logits.softmax(-1) - hot) * (self.inner_lr / samples)
            weight = torch.baddbmm(weight, slopes.mT, features, alpha=-1)
            bias = None if bias is None else bias - slopes.sum(1)
        return weight, bias, loss


#: The name that a report on convex inner problems gives it.
ConvexMAML = ANIL
