"""The meta-step of a training: meta-gradient, clipping, the outer optimizer's step.

And what keeps numbers that are not finite out of a run: norms, undoing, counting the undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_

from metasparse_ext._capture import capture
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.finite import are_finite
from metasparse_ext.data import TaskBatch
from metasparse_ext.training import metrics, outer
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.distributed import Workers
from metasparse_ext.training.measure import ACCURACY, Measure

MOST_SKIPPED = 20


class MetaStep:
    """The meta-step with its optimizer, on a GPU one CUDA graph where it can be.

    Args:
        config: Of the run.
        learner: What is trained. A step sets its ``nonfinite`` where a loss, the meta-gradient, a
            parameter or the optimizer's state is not finite.
        workers: The processes among which the tasks are divided.
        distributions: The names of the data sets of a mixture.
        optimizer: The outer optimizer, or what makes one, where the configuration names none.
        measure: What the run is judged by.

    Attributes:
        whole: Whether the state is that of a whole number of steps: not where an optimizer of one's
            own has raised, or another process has died.
    """

    def __init__(
        self,
        config: RunConfig,
        learner: MetaLearner,
        workers: Workers,
        distributions: tuple[str, ...],
        *,
        optimizer: Any = None,
        measure: Measure = ACCURACY,
    ) -> None:
        self._given, self._measure = optimizer, measure
        self._config = config
        self._learner = learner
        self._workers = workers
        self._distributions = distributions
        self._failure: FloatingPointError | None = None
        self.whole = True
        self.begin()
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def begin(self) -> None:
        """Takes a fresh optimizer, and where the step is captured, captures it anew."""
        undone = self._config.on_nonfinite != "stop"
        self.optimizer = outer.optimizer(self._config, self._learner, self._given)
        self._last_state = LastState(self._learner) if undone else None
        self._run = capture(self._step) if self.captures else self._step

    @property
    def captures(self) -> bool:
        """Whether the step is captured where it can be.

        Processes that share tasks agree on the host, in every meta-step, whether all is well.
        """
        config = self._config
        alone = self._workers.size == 1
        return config.capture and alone and outer.on_gpu(config) and outer.capturable(config)

    def __call__(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Does it; returns the totals of the metrics (:func:`metrics.totals`), on the device.

        Nothing where the host has seen that there is no meta-gradient to step with.
        """
        return self._run(batch)

    def undo(self) -> None:
        """Puts learner and optimizer back to where they were before the step."""
        if self._last_state is None:
            raise RuntimeError("a meta-step can be undone where on_nonfinite is not 'stop'")
        self._last_state.undo(self.optimizer)
        self.whole = True

    def set_rates(self, factor: float) -> None:
        """Sets the learning rates to their share of the first ones, in place on a GPU."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Restores the optimizer's state; its rates stay on their device, and are set each step."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(dict(state))
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def reason(self, iteration: int) -> str:
        """What is not finite after a number of iterations, as exactly as can be told."""
        if self._failure is not None:
            return str(self._failure)
        name = first_nonfinite(self._learner, self.optimizer)
        if name is not None:
            return f"{name} is not finite after iteration {iteration}"
        return (
            f"a loss or the meta-gradient is not finite after iteration "
            f"{int(self._learner.iteration)} (in this or in another process)"
        )

    def _step(self, batch: TaskBatch) -> dict[str, Tensor]:
        """What a CUDA graph holds."""
        if self._last_state is not None:
            self._last_state.keep(self.optimizer)
        self._learner.zero_grad()  # all of it: the optimizer may step a part
        sums = self._meta_backward(batch)
        if self._failure is not None:
            return {}
        norm = self._clip()
        nonfinite = self._learner.nonfinite
        nonfinite |= ~norm.isfinite()
        if outer.on_gpu(self._config) and outer.capturable(self._config):
            # What a fused or capturable step asks for, as torch.amp.GradScaler sets it.
            self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        elif bool(nonfinite):
            return {}
        self.optimizer.step()
        self.whole = True
        nonfinite |= ~are_finite(floating(self._learner, self.optimizer))
        return {**sums, "gradient_norm": metrics.total(norm)}

    def _meta_backward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Leaves the meta-gradient of all tasks, and returns the totals of the metrics."""
        learner, workers = self._learner, self._workers
        self._failure = None
        sums: dict[str, Tensor] = {}
        counted = learner.iteration.clone()
        try:
            found = learner.meta_backward(batch)
            sums = metrics.totals(
                found, batch.distribution, self._distributions, measure=self._measure
            )
        except FloatingPointError as error:
            self._failure = error
        except Exception:
            learner.iteration.copy_(counted)  # a metric raises when the step has been counted
            raise
        # From here on the other processes' tasks are needed, too.
        self.whole = False
        if workers.any(self._failure is not None):
            if self._failure is None:
                self._failure = FloatingPointError(
                    "another process met a number that is not finite"
                )
            learner.nonfinite.fill_(True)
            return {}
        workers.average_gradients(learner, self._config.tasks)
        # Learners may keep running averages, of their own tasks.
        workers.average_buffers(learner, self._config.tasks)
        workers.average(list(sums.values()))
        return sums

    def _clip(self) -> Tensor:
        """Clips the meta-gradient where asked, and returns the norm it had before.

        The meta-gradient is that of the parameters that the optimizer steps.
        """
        config = self._config
        stepped = {p for group in self.optimizer.param_groups for p in group["params"]}
        parameters = [p for p in self._learner.parameters() if p.grad is not None and p in stepped]
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        if config.clip_value is not None:
            clip_grad_value_(parameters, config.clip_value)
        if config.clip_norm is not None:
            clip_grads_with_norm_(parameters, config.clip_norm, norm)
        return norm


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, () float64.

    Squares of finite float32 numbers can overflow in float32, but not in float64: the norm is
    finite exactly where every gradient is.
    """
    return torch.linalg.vector_norm(
        torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float64))
    )


def state_of(
    learner: MetaLearner, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything that a meta-step changes.

    Parameters, the learner's persistent buffers, and the optimizer's state.
    """
    names: dict[Any, str] = {parameter: name for name, parameter in learner.named_parameters()}
    for name, value in learner.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            yield name, value
    for key, state in optimizer.state.items():
        # One's own optimizer may keep something beside what it has of each parameter.
        kept = state if isinstance(state, Mapping) else {"state": state}
        for name, value in kept.items():
            if isinstance(value, Tensor):
                yield f"the optimizer's {name} of {names.get(key, key)}", value


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
