"""Prototypical networks: the class whose mean embedding is nearest."""

from __future__ import annotations

from torch import Tensor, nn

from metasparse_ext._arguments import refuse, require_number
from metasparse_ext.algorithms.head_learner import HeadLearner, head_logits
from metasparse_ext.algorithms.records import Source
from metasparse_ext.reference.softmax_head import one_hot


class ProtoNet(HeadLearner):
    """Images are of the class whose support images have the nearest mean embedding.

    c_k = mean of z(x) over the support images x of class k, with z the model up to its head, and

        logits_k(x) = -|z(x) - c_k|^2 / temperature,

    which is linear but for |z(x)|^2, the same for every class: the adapted head has the weights
    2 c_k / temperature and the biases -|c_k|^2 / temperature. Its probabilities and losses are
    those of the distances. Nothing but z is learned; the head's own parameters have a gradient of
    zero. A class without support images has its prototype at the origin.

    Args:
        model: A network whose output is the output of its head, an ``nn.Linear`` with a bias.
        head: Name of the head; the last ``nn.Linear`` by default.
        temperature: What squared distances are divided by, above 0.

    Raises:
        ValueError: if the head has no bias.

    Source: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
    """

    source = Source(
        paper="Snell, Swersky, Zemel, NeurIPS 2017",
        exact="mean embeddings as prototypes, squared Euclidean distances as logits",
        reconstructed="the temperature, which is 1 in the paper; batch statistics of the support "
        "and of the query set apart, as for all learners here",
    )
    own_loss = "prototypes are those of classes"

    def __init__(
        self, model: nn.Module, *, head: str | None = None, temperature: float = 1.0
    ) -> None:
        require_number(self.name, "temperature", temperature, above=0)
        super().__init__(model, head=head, inner_lr=1.0, inner_steps=0)
        if self._head.bias is None:
            wanted = "one whose head has a bias, for the prototypes' norms"
            refuse(self.name, "model", wanted, f"{type(model).__name__}, {self.head!r} without")
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"

    def fit(
        self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        hot = one_hot(labels, weight.shape[-2], features.dtype)
        count = hot.sum(1).clamp(min=1).unsqueeze(-1)
        prototypes = hot.mT @ features / count
        found = 2 * prototypes / self.temperature
        offset = -prototypes.square().sum(-1) / self.temperature
        logits = head_logits(features.detach(), found.detach(), offset.detach())
        return found, offset, self.task_losses(logits, labels)
