"""What keeps numbers that are not finite out of a run: norms, undoing, counting the undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metasparse_ext.algorithms.base import MetaLearner

MOST_SKIPPED = 20


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, () float64.

    Squares of finite float32 numbers can overflow in float32, but not in float64: the norm is
    finite exactly where every gradient is.
    """
    return torch.linalg.vector_norm(
        torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float64))
    )


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """() bool, on the device: whether no element of any of the tensors is NaN or infinite."""
    norms = torch._foreach_norm(tensors, torch.inf, dtype=torch.float64)
    return torch.stack(norms).isfinite().all()


def state_of(
    learner: MetaLearner, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything that a meta-step changes.

    Parameters, the learner's persistent buffers, and the optimizer's state.
    """
    names = {parameter: name for name, parameter in learner.named_parameters()}
    for name, value in learner.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            yield name, value
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield f"the optimizer's {name} of {names[parameter]}", value


def floating(learner: MetaLearner, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The floating-point tensors of :func:`state_of`."""
    tensors = (value.detach() for _, value in state_of(learner, optimizer))
    return [value for value in tensors if value.is_floating_point()]


def first_nonfinite(learner: MetaLearner, optimizer: torch.optim.Optimizer) -> str | None:
    """The name of the first tensor of the state with an element that is not finite."""
    for name, value in state_of(learner, optimizer):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return name
    return None


class LastState:
    """A copy of the state before a meta-step, to which the step can be undone.

    Keeping and undoing are copies between tensors that stay where they are, so the first can be
    part of a CUDA graph and the second finds what the graph's replay left.
    """

    def __init__(self, learner: MetaLearner) -> None:
        self._learner = learner
        self._copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Copies the state as it is now."""
        for name, value in state_of(self._learner, optimizer):
            if name in self._copies:
                self._copies[name].copy_(value)
            else:
                self._copies[name] = value.detach().clone()

    @torch.no_grad()
    def undo(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts the state back; what the optimizer has made since is zero, as when it begins."""
        for name, value in state_of(self._learner, optimizer):
            if name in self._copies:
                value.copy_(self._copies[name])
            else:
                value.zero_()
        self._learner.nonfinite.zero_()


@dataclass
class Skipped:
    """The meta-steps that were left out because they were not finite.

    Attributes:
        count: How many.
        in_a_row: How many since the last one that was not left out.
        factor: What is left of the outer rates where each of them halves those.
    """

    count: int = 0
    in_a_row: int = 0
    factor: float = 1.0

    def add(self, *, halve: bool) -> None:
        """Counts a meta-step, and with ``halve`` halves the outer rates."""
        self.count += 1
        self.in_a_row += 1
        if halve:
            self.factor /= 2

    @property
    def too_many(self) -> bool:
        """Whether so many in a row were left out that the run should end."""
        return self.in_a_row > MOST_SKIPPED

    def status(self) -> dict[str, float]:
        """What the metrics should say, once there is something to say."""
        if not self.count:
            return {}
        return {"skipped": self.count, "rate_factor": self.factor}
