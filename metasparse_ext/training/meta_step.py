"""The meta-step of a training: meta-gradient, clipping, the outer optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_

from metasparse_ext._capture import capture
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.data import TaskBatch
from metasparse_ext.training import build, finite, metrics
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.distributed import Workers


class MetaStep:
    """The meta-step with its optimizer, on a GPU one CUDA graph where it can be.

    Args:
        config: Of the run.
        learner: What is trained. A step sets its ``nonfinite`` where a loss, the meta-gradient, a
            parameter or the optimizer's state is not finite.
        workers: The processes among which the tasks are divided.
        distributions: The names of the data sets of a mixture.
    """

    def __init__(
        self,
        config: RunConfig,
        learner: MetaLearner,
        workers: Workers,
        distributions: tuple[str, ...],
    ) -> None:
        self._config = config
        self._learner = learner
        self._workers = workers
        self._distributions = distributions
        self._failure: FloatingPointError | None = None
        self.begin()
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def begin(self) -> None:
        """Takes a fresh optimizer, and where the step is captured, captures it anew."""
        undone = self._config.on_nonfinite != "stop"
        self.optimizer = build.optimizer(self._config, self._learner)
        self._last_state = finite.LastState(self._learner) if undone else None
        self._run = capture(self._step) if self.captures else self._step

    @property
    def captures(self) -> bool:
        """Whether the step is captured where it can be.

        Processes that share tasks agree on the host, in every meta-step, whether all is well.
        """
        config = self._config
        return config.capture and build.on_gpu(config) and self._workers.size == 1

    def __call__(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Does it; returns the totals of the metrics (:func:`metrics.totals`), on the device.

        Nothing where the host has seen that there is no meta-gradient to step with.
        """
        return self._run(batch)

    def undo(self) -> None:
        """Puts learner and optimizer back to where they were before the step."""
        self._last_state.undo(self.optimizer)

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
        self.optimizer.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def reason(self, iteration: int) -> str:
        """What is not finite after a number of iterations, as exactly as can be told."""
        if self._failure is not None:
            return str(self._failure)
        name = finite.first_nonfinite(self._learner, self.optimizer)
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
        self.optimizer.zero_grad()
        sums = self._meta_backward(batch)
        if self._failure is not None:
            return {}
        norm = self._clip()
        nonfinite = self._learner.nonfinite
        nonfinite |= ~norm.isfinite()
        if build.on_gpu(self._config):
            self.optimizer.found_inf = nonfinite.float()
        elif bool(nonfinite):
            return {}
        self.optimizer.step()
        nonfinite |= ~finite.all_finite(finite.floating(self._learner, self.optimizer))
        return {**sums, "gradient_norm": metrics.total(norm)}

    def _meta_backward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Leaves the meta-gradient of all tasks, and returns the totals of the metrics."""
        learner, workers = self._learner, self._workers
        self._failure = None
        sums: dict[str, Tensor] = {}
        try:
            found = learner.meta_backward(batch)
            sums = metrics.totals(found, batch.distribution, self._distributions)
        except FloatingPointError as error:
            self._failure = error
        if workers.any(self._failure is not None):
            if self._failure is None:
                self._failure = FloatingPointError(
                    "another process met a number that is not finite"
                )
            learner.nonfinite.fill_(True)
            return {}
        workers.average_gradients(learner)
        # Learners may keep running averages, of their own tasks.
        workers.average([b for b in learner.buffers() if b.is_floating_point()])
        workers.average(list(sums.values()))
        return sums

    def _clip(self) -> Tensor:
        """Clips the meta-gradient where asked, and returns the norm it had before."""
        config = self._config
        parameters = [p for p in self._learner.parameters() if p.grad is not None]
        norm = finite.total_norm([p.grad for p in parameters])
        if config.clip_value is not None:
            clip_grad_value_(parameters, config.clip_value)
        if config.clip_norm is not None:
            clip_grads_with_norm_(parameters, config.clip_norm, norm)
        return norm
