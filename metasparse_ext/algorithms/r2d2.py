"""R2-D2: the last layer by ridge regression, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import FLOATS, require_number
from metasparse_ext._capture import observed
from metasparse_ext.algorithms.head_learner import HeadLearner, head_logits
from metasparse_ext.algorithms.records import Source
from metasparse_ext.implicit import ridge_head


class R2D2(HeadLearner):
    """Ridge regression from a task's embeddings to its labels, differentiated through the solution.

    With X the support embeddings and a column of ones, N rows divided by sqrt(N), and Y the labels
    as unit vectors, likewise,

        W = X' (X X' + lambda)^-1 Y,    logits(x) = scale * (z(x), 1) W + shift,

    where lambda, scale and shift are learned with the embedding z, the model up to its head. The
    head's own parameters have a gradient of zero. A head without a bias leaves out the column of
    ones and the shift, which moves all classes alike.

    Args:
        model: A network whose output is the output of its head.
        head: Name of the head; the last ``nn.Linear`` by default.
        lam: Where lambda starts, above 0.
        scale: Where the scale starts.

    Attributes:
        log_lam, scale, shift: (), learned; the first is log(lambda), which so stays above 0.

    Source: Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form
        solvers", ICLR 2019, and its official code.
    """

    source = Source(
        paper="Bertinetto, Henriques, Torr, Vedaldi, ICLR 2019",
        exact="the ridge regression and the learned scale and shift of its outputs",
        reconstructed="lambda is learned by its logarithm (the code keeps it at 50); batch "
        "statistics of the support and of the query set apart, as for all learners here",
    )
    own_loss = "the inner problem is a ridge regression on classes"
    dtypes = FLOATS

    def __init__(
        self, model: nn.Module, *, head: str | None = None, lam: float = 50.0, scale: float = 10.0
    ) -> None:
        require_number(self.name, "lam", lam, above=0)
        require_number(self.name, "scale", scale)
        super().__init__(model, head=head, inner_lr=1.0, inner_steps=0)
        like = self._head.weight
        for name, start in {"log_lam": math.log(lam), "scale": scale, "shift": 0.0}.items():
            self.register_parameter(name, nn.Parameter(like.new_tensor(start)))
        self.log_lam: Tensor
        self.scale: Tensor
        self.shift: Tensor

    def _require_strength(self, lam: Tensor) -> None:
        """Raises on a lambda that has left the numbers of its dtype, as in a run that diverges."""
        if lam.is_cpu and observed() and not 0 < lam.item() < math.inf:
            raise FloatingPointError(
                f"{self.name}: lambda is {lam.item()} in iteration {int(self.iteration)}; "
                "a smaller meta learning rate usually helps"
            )

    def extra_repr(self) -> str:
        return f"lam={math.exp(self.log_lam.item()):g}, scale={self.scale.item():g}"

    def fit(
        self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        lam = torch.exp(self.log_lam)
        self._require_strength(lam)
        found, offset = ridge_head(
            features, labels, weight.shape[-2], lam=lam, bias=bias is not None
        )
        found = self.scale * found
        offset = None if offset is None else self.scale * offset + self.shift
        moved = None if offset is None else offset.detach()
        logits = head_logits(features.detach(), found.detach(), moved)
        return found, offset, self.task_losses(logits, labels)
