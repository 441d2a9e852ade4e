"""The training loop: episodes, meta-gradients, optimizer steps, validation, checkpoints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from metasparse_ext._capture import capture
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.data import TaskBatch, on_device
from metasparse_ext.training import atomic, build, checkpoint, measures, metrics
from metasparse_ext.training.checkpoint import Checkpoint
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.distributed import ALONE, Workers
from metasparse_ext.training.evaluation import evaluate
from metasparse_ext.training.interrupt import StopRequest
from metasparse_ext.training.run import Run

BUDGET_TOLERANCE = 0.02
# What a resumed run may change without changing its numbers.
_FREE = {"root", "init_from", "save_every", "evaluation_tasks", "workers", "capture"}
_VALIDATION_SEED = 1_000_003


class TrainingError(Exception):
    """Training that cannot go on; its message says what was saved and where."""


class Reporter(Protocol):
    """Is told what happens during training."""

    def start(self, config: RunConfig, iteration: int) -> None:
        """Training begins after ``iteration`` iterations."""

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """A training record was written; a fraction of the whole training is done."""

    def validation(self, record: Mapping[str, Any], best: bool) -> None:
        """A validation record was written; ``best`` if its checkpoint is the best so far."""


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        iteration: Meta-iterations done.
        interrupted: Whether a signal ended it early; the run can be resumed.
        best: The validation record of the best eligible checkpoint, if any.
    """

    iteration: int
    interrupted: bool
    best: Mapping[str, Any] | None


class Trainer:
    """Trains a learner and leaves a run folder.

    A resumed run goes on from the last checkpoint, and its metrics (times apart) and weights equal
    those of a run that was never stopped.

    Args:
        config: What to train. A run that goes on must be given the configuration it was begun with;
            only ``iterations`` or ``max_seconds`` may have grown.
        run: The run folder. One that holds a checkpoint goes on from it; another is begun.
        reporter: Is told what happens.
        workers: The processes among which the tasks of a meta-batch are divided. Only the first
            of them writes; the others' reporters should be silent.

    Raises:
        DataError, CheckpointError, ValueError: If the configuration cannot be built.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Run,
        *,
        reporter: Reporter | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.config = config = build.resolved(config)
        self.run = run
        self.reporter = reporter
        self.workers = workers
        workers.require_shares(config.tasks)
        self.classes = build.images(config, "train")
        self.validation_classes = build.images(config, config.validation_split)
        self.distributions = build.distributions(self.classes)
        # One answer for all, and before the first of them makes the folder.
        resuming = workers.any(run.started)
        start = config.replace(init_from=None) if resuming else config
        self.learner = build.learner(start, self.classes.shape)
        if config.max_seconds is None:
            self.learner.plan(config.iterations)
        self.optimizer = build.optimizer(config, self.learner)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.iteration = 0
        self._spent: list[float] = []  # seconds of the meta-iterations since the last record
        self.elapsed = 0.0
        self.best: Mapping[str, Any] | None = None
        self._validation_batches()
        if resuming:
            self._restore()
        drawn = build.episodes(
            config, self.classes, seed=config.seed, tasks=config.tasks, start=self.iteration
        )
        self.batches = on_device(map(workers.share, drawn), config.device)
        self._run = self._runner()
        if not resuming:
            if workers.first:
                run.create(config)
            self._save(run.last_path)

    def fit(self) -> Outcome:
        """Trains to the end, or until SIGINT or SIGTERM.

        Raises:
            TrainingError: If a loss or gradient stops being finite. The state before it is saved.
        """
        config = self.config
        if self.reporter:
            self.reporter.start(config, self.iteration)
        with self._open_log() as self.log, StopRequest() as request:
            while not (self._done or self.workers.any(request.stop)):
                self._step(next(self.batches))
                validating = self._ended or self.iteration % config.validate_every == 0
                if validating:
                    self._require_finite()
                    self._validate()
                if self._ended and self.learner.searching:
                    self._begin_again()
                # After the validation, so that a run resumed from here has not left it out.
                if validating or self.iteration % config.save_every == 0:
                    self._require_finite()
                    self._save(self.run.last_path)
            if not self._done:
                self._require_finite()
                self._save(self.run.last_path)
        return Outcome(self.iteration, not self._done, self.best)

    def _runner(self) -> Callable[[TaskBatch], dict[str, Tensor]]:
        """The meta-step, captured where it can be."""
        config = self.config
        # Processes that share tasks agree on the host, in every meta-step, whether all is well.
        captured = config.capture and build.on_gpu(config) and self.workers.size == 1
        return capture(self._meta_step) if captured else self._meta_step

    def _begin_again(self) -> None:
        """Goes on to the next training of the learner's course."""
        try:
            self.learner.begin_again(self._position)
        except ValueError as error:
            raise TrainingError(f"{error}; {self.run} goes no further") from error
        self.optimizer = build.optimizer(self.config, self.learner)
        self._run = self._runner()

    def _clock(self) -> float:
        """Seconds of the processor; beside a GPU, on which it only waits, seconds."""
        return time.perf_counter() if build.on_gpu(self.config) else time.process_time()

    @property
    def _done(self) -> bool:
        return self._ended and not self.learner.searching

    @property
    def _ended(self) -> bool:
        """Whether the present training of the learner's course is over."""
        return self.learner.ended(self._position, self._length)

    @property
    def _position(self) -> float:
        return self.iteration if self.config.max_seconds is None else self.elapsed

    @property
    def _length(self) -> float:
        """How long the present training is; the last one takes all seconds that are left."""
        config, learner = self.config, self.learner
        part = learner.search_length if learner.searching else 1.0
        if config.max_seconds is None:
            return config.iterations * part
        if learner.searching:
            return config.max_seconds / learner.trainings * part
        return config.max_seconds - learner.begun

    @property
    def _fraction(self) -> float:
        """How much of the present training is done."""
        return (self._position - self.learner.begun) / self._length

    def _step(self, batch: TaskBatch) -> None:
        started, spent = time.perf_counter(), self._clock()
        self._set_rates()
        measured = self._run(batch)
        self.iteration += 1
        self.elapsed += self.workers.mean(self._clock() - spent)
        self.learner.stepped(self.iteration, self._position)
        logging = self.iteration % self.config.log_every == 0
        found = self._read(measured) if logging else {}
        self._spent.append(time.perf_counter() - started)
        if logging:
            self._log_step(found)

    def _read(self, measured: dict[str, Tensor]) -> dict[str, float]:
        """The numbers; on a GPU this waits for all steps since it was called last."""
        self._require_finite()
        return measures.means(measured)

    def _log_step(self, found: Mapping[str, float]) -> None:
        record = {
            "iteration": self.iteration,
            "kind": "train",
            **found,
            **self.learner.status(),
            "seconds": round(statistics.fmean(self._spent), 6),
        }
        self._spent.clear()
        self._write(record)
        if self.reporter:
            course = self.learner.finished + min(1.0, self._fraction)
            self.reporter.step(record, course / self.learner.trainings)

    def _set_rates(self) -> None:
        """Sets the learning rates of this iteration, in place where they lie on the device."""
        factor = build.scheduled(self.config.schedule, self._fraction)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _meta_step(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Meta-gradient, clipping and optimizer step: on a GPU, what a CUDA graph holds.

        Returns the totals of what was measured, on the device.
        """
        self.optimizer.zero_grad()
        measured = self._meta_backward(batch)
        norm = self._clip()
        if build.on_gpu(self.config):
            self.optimizer.found_inf = self.learner.nonfinite.float()
        self.optimizer.step()
        return {**measured, "gradient_norm": measures.total(norm)}

    def _require_finite(self) -> None:
        """Ends the training if a meta-step on the device met a number that is not finite."""
        if not bool(self.learner.nonfinite):
            return
        self.iteration = int(self.learner.iteration)
        self._save(self.run.last_path)
        raise TrainingError(
            f"a loss or the meta-gradient is not finite after iteration {self.iteration} (without "
            f"capture the step and task are named); the last finite state is saved in "
            f"{self.run.last_path}"
        )

    def _meta_backward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Leaves the meta-gradient of all tasks, and returns the totals of what was measured."""
        failure: FloatingPointError | None = None
        measured: dict[str, Tensor] = {}
        try:
            found = self.learner.meta_backward(batch)
            measured = measures.totals(found, batch.distribution, self.distributions)
        except FloatingPointError as error:
            failure = error
        if self.workers.any(failure is not None):
            self.learner.iteration.fill_(self.iteration)
            self._save(self.run.last_path)
            raise TrainingError(
                f"{failure or 'another process met a number that is not finite'}; "
                f"the last finite state is saved in {self.run.last_path}"
            ) from failure
        self.workers.average_gradients(self.learner)
        # Learners may keep running averages, of their own tasks.
        self.workers.average([b for b in self.learner.buffers() if b.is_floating_point()])
        self.workers.average(list(measured.values()))
        return measured

    def _clip(self) -> Tensor:
        """Clips the meta-gradient where asked, and returns the norm it had before."""
        config = self.config
        parameters = [p for p in self.learner.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        if config.clip_value is not None:
            clip_grad_value_(parameters, config.clip_value)
        if config.clip_norm is not None:
            clip_grads_with_norm_(parameters, config.clip_norm, norm)
        return norm

    def _validation_batches(self) -> Iterator[TaskBatch]:
        """The fixed tasks of every validation."""
        return build.held_out_episodes(self.config, self.validation_classes, seed=_VALIDATION_SEED)

    def _validate(self) -> None:
        config = self.config
        report = evaluate(
            self.learner,
            self._validation_batches(),
            tasks=config.validation_tasks,
            transductive=config.transductive,
            distributions=self.distributions,
        )
        record = {
            "iteration": self.iteration,
            "kind": "validation",
            **report.to_dict(),
            **self.learner.status(),
            "eligible": eligible(self.learner, report.active),
        }
        better = record["eligible"] and (
            self.best is None or record["accuracy"] >= self.best["accuracy"]
        )
        self._write(record)
        if better:
            self.best = record
            self._save(self.run.best_path)
        if self.reporter:
            self.reporter.validation(record, better)

    def _open_log(self) -> AbstractContextManager[metrics.MetricsFile | None]:
        return metrics.MetricsFile(self.run.metrics_path) if self.workers.first else nullcontext()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write({**record, "elapsed": round(self.elapsed, 3)})

    def _save(self, path: Path) -> None:
        if not self.workers.first:
            return
        checkpoint.save(
            Checkpoint(
                config=self.config.to_dict(),
                iteration=self.iteration,
                learner=self.learner.state_dict(),
                optimizer=self.optimizer.state_dict(),
                best=self.best,
                random_state=torch.get_rng_state(),
                elapsed=self.elapsed,
            ),
            path,
        )

    def _restore(self) -> None:
        saved = checkpoint.load(self.run.last_path)
        self._require_same(RunConfig.from_dict(saved.config))
        self.learner.load_state_dict(saved.learner)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved.optimizer)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # on its device; set anew in every iteration
        self.iteration, self.elapsed = saved.iteration, saved.elapsed
        self.best = saved.best
        torch.set_rng_state(saved.random_state)
        if not self.workers.first:
            return
        metrics.truncate(self.run.metrics_path, saved.iteration)
        atomic.replace_text(self.run.config_path, self.config.to_json())

    def _require_same(self, begun: RunConfig) -> None:
        """Refuses to go on under another configuration; a constant schedule may grow longer."""
        free = _FREE | {"iterations", "max_seconds"} if begun.schedule == "constant" else _FREE
        changed = [name for name in begun.differences(self.config) if name not in free]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.run} was begun with {name} = {getattr(begun, name)!r}, "
                f"got {getattr(self.config, name)!r}"
            )


def eligible(learner: MetaLearner, active: float) -> bool:
    """Whether a checkpoint may become the best: not in a search, nor before its budget holds."""
    if learner.searching:
        return False
    budget = getattr(learner, "budget", None)
    return budget is None or abs(active - budget) <= BUDGET_TOLERANCE
