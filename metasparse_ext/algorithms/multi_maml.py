"""Multi-MAML: an initialization for each distribution of tasks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require,
    require_count,
    require_number,
    require_size,
    require_type,
)
from metasparse_ext.algorithms.maml import MAML, StepOptions
from metasparse_ext.algorithms.records import Source
from metasparse_ext.data import Samples
from metasparse_ext.ops._operands import is_readable


class MultiMAML(MAML):
    """N independent MAMLs, one for each distribution of tasks.

    A meta-batch may mix the distributions: all of its tasks are adapted together, each from the
    initialization of its ``distribution``, which is given at test time too. The gradient of
    an initialization is N times its tasks' sum over the tasks of the meta-batch: with equal shares
    the mean over its own tasks, as if it were trained alone. (A distribution that a meta-batch
    leaves out has a gradient of zero, on which an optimizer with momentum still moves.)

    Args:
        model: A network from images to logits, which N copies start from; it is copied itself.
        distributions: N. With one, tasks need not name it.
        inner_lr: One learning rate for all distributions, or one for each.
        **maml: The other options of :class:`MAML`. Learned rates are those of each distribution.

    Attributes:
        initializations: (N, P), the meta-parameters; row d as a network is ``network(d)``.

    Source: the baseline of Vuorio, Sun, Hu, Lim, "Multimodal Model-Agnostic Meta-Learning via
        Task-Aware Modulation", NeurIPS 2019, and of GEMS (WACV 2023).
    """

    source = Source(
        paper="Vuorio, Sun, Hu, Lim, NeurIPS 2019, and GEMS: their baseline",
        exact="one independent MAML for each distribution, told which is which",
    )

    _inner_lrs: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float | Sequence[float] = 0.01,
        distributions: int = 1,
        **maml: Unpack[StepOptions],
    ) -> None:
        require_size(self.name, "distributions", distributions)
        require_type(self.name, "model", model, nn.Module, "an nn.Module")
        each: tuple[Any, ...] = (inner_lr,) * distributions
        if isinstance(inner_lr, Sequence) and not isinstance(inner_lr, (str, bytes)):
            each = tuple(inner_lr)
        wanted = f"a number above 0, or {distributions} of them"
        require(len(each) == distributions, self.name, "inner_lr", wanted, inner_lr)
        for rate in each:
            require_number(self.name, "inner_lr", rate, above=0)
        super().__init__(copy.deepcopy(model), inner_lr=each[0], **maml)
        self.inner_lr = inner_lr  # type: ignore[assignment]  # all of them, to be shown
        self.distributions = distributions
        self.register_buffer("_inner_lrs", self.start(1).new_tensor(each), persistent=False)
        if self.learned_rates is not None:
            self._learn_rates(self.learned_rates.kind, self._inner_lrs)
        self.initializations = nn.Parameter(self.start(distributions).clone())
        # The model is a template: its own parameters are not learned.
        self.model.requires_grad_(False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, distributions={self.distributions}"

    def masks(self) -> dict[str, Tensor]:
        """The masks of every initialization by layer name: (N, O, I), or one entry a weight."""
        return self.adapted(self.initializations).masks()

    def network(self, distribution: int) -> nn.Module:
        """A copy of the model at the initialization of a distribution."""
        require_count(self.name, "distribution", distribution, most=self.distributions - 1)
        net = copy.deepcopy(self.model)
        with torch.no_grad():
            row = self.layout.unflatten(self.initializations[distribution])
            for name, value in row.items():
                net.get_parameter(name).requires_grad_().copy_(value)
        return net

    def follow_frozen(self) -> None:
        """Nothing: the template's parameters are all frozen, and the initializations are not."""

    def theta(self, support: Samples) -> Tensor:
        return self.initializations.detach()[self._which(support)]

    def rates(self, step: int, phi: Tensor, gradient: Tensor, support: Samples) -> Tensor:
        learned = self.learned_rates
        every: Tensor = self._inner_lrs.unsqueeze(-1) if learned is None else learned(step)
        return every.index_select(0, self._which(support))

    def meta_gradient(
        self, gradient: Tensor, own: dict[str, Tensor], support: Samples
    ) -> dict[str, Tensor]:
        total = torch.zeros_like(self.initializations)
        total.index_add_(0, self._which(support), gradient)
        share = len(gradient) / self.distributions
        return {name: part / share for name, part in {**own, "initializations": total}.items()}

    def _which(self, support: Samples) -> Tensor:
        """(T,) the distribution of each task."""
        which = support.distribution
        if which is None:
            wanted = f"given, there are {self.distributions}"
            require(self.distributions == 1, self.name, "distribution of support", wanted, None)
            return torch.zeros_like(support.labels[:, 0])
        if is_readable(which):
            fits = bool(((which >= 0) & (which < self.distributions)).all())
            wanted = f"from 0 to {self.distributions - 1}"
            require(fits, self.name, "distribution of support", wanted, which.tolist())
        return which
