"""The training loop: episodes, meta-gradients, optimizer steps, validation, checkpoints."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_

from metasparse_ext import _atomic as atomic
from metasparse_ext._capture import capture
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.data import TaskBatch, on_device
from metasparse_ext.training import build, checkpoint, finite, metrics
from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.distributed import ALONE, Workers
from metasparse_ext.training.evaluation import evaluate
from metasparse_ext.training.interrupt import StopRequest
from metasparse_ext.training.run import Run, RunInUseError, RunLock, changes, machine
from metasparse_ext.training.stages import Stages, is_last, stages_of

logger = logging.getLogger("metasparse_ext")

BUDGET_TOLERANCE = 0.02
# What a resumed run may change without changing its numbers.
_FREE = {"root", "init_from", "save_every", "evaluation_tasks", "workers", "capture"}
# So many meta-steps in a row are left out; after one more the run ends.
_MOST_SKIPPED = 20
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

    def status(self) -> dict[str, float]:
        """What the metrics should say, once there is something to say."""
        if not self.count:
            return {}
        return {"skipped": self.count, "rate_factor": self.factor}


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
        RunInUseError: If another process is training in the folder.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Run,
        *,
        reporter: Reporter | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.config = build.resolved(config)
        self.run = run
        self.reporter = reporter
        self.workers = workers
        self.iteration = self.records = 0
        self._spent: list[float] = []  # seconds of the meta-iterations since the last record
        self.elapsed = 0.0
        self.best: Mapping[str, Any] | None = None
        self.skipped = Skipped()
        self.log: metrics.MetricsFile | None = None
        self._failure: FloatingPointError | None = None
        self._lock = RunLock(run.lock_path)
        try:
            self._prepare()
        except BaseException:
            self._lock.release()
            raise

    def _prepare(self) -> None:
        """Builds what the configuration names, and restores or begins the run."""
        config, run, workers = self.config, self.run, self.workers
        workers.require_shares(config.tasks)
        self.classes = build.images(config, "train")
        self.validation_classes = build.images(config, config.validation_split)
        self.distributions = build.distributions(self.classes)
        # One answer for all, and before the first of them makes the folder.
        resuming = workers.any(run.started)
        if resuming:
            self._take_lock()
        start = config.replace(init_from=None) if resuming else config
        self.learner = build.learner(start, self.classes.shape)
        self.stages = stages_of(self.learner)
        if config.max_seconds is None:
            self.stages.plan(config.iterations)
        self.optimizer = build.optimizer(config, self.learner)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.last_state = self._undo_copy()
        self._validation_batches()
        if resuming:
            self._restore()
        drawn = build.episodes(
            config, self.classes, seed=config.seed, tasks=config.tasks, start=self.iteration
        )
        self.batches = on_device(map(workers.share, drawn), config.device)
        self._run = self._runner()
        if not resuming:
            self._begin()

    def _begin(self) -> None:
        """Makes the run folder and its first checkpoint."""
        run, first = self.run, self.workers.first
        if first:
            atomic.make_folder(run.folder)
        self._take_lock()
        if self.workers.any(run.started):
            raise RunInUseError(f"{run}: another process has begun a run in this folder")
        if first:
            run.create(self.config)
        self._save(run.last_path)

    def _take_lock(self) -> None:
        """Refuses to train where another process does."""
        taken = not self.workers.first or self._lock.acquire()
        if self.workers.any(not taken):
            raise RunInUseError(f"{self.run}: another process is training in this folder")

    def fit(self) -> Outcome:
        """Trains to the end, or until SIGINT or SIGTERM.

        Raises:
            TrainingError: If a meta-step leaves numbers that are not finite and the configuration
                does not say to go on, or too many in a row did. The last checkpoint stays.
        """
        if self.reporter:
            self.reporter.start(self.config, self.iteration)
        self._take_lock()
        try:
            self._train()
        finally:
            self._lock.release()
        return Outcome(self.iteration, not self._done, self.best)

    def _train(self) -> None:
        config = self.config
        with self._open_log() as self.log, StopRequest() as request:
            while not (self._done or self.workers.any(request.stop)):
                self._step(next(self.batches))
                validating = self._ended or self.iteration % config.validate_every == 0
                if validating:
                    self._require_finite()
                    self._validate()
                if self._ended and not is_last(self.stages):
                    self._next_stage()
                # After the validation, so that a run resumed from here has not left it out.
                if validating or self.iteration % config.save_every == 0:
                    self._require_finite()
                    self._save(self.run.last_path)
            if not self._done:
                self._require_finite()
                self._save(self.run.last_path)

    def _runner(self) -> Callable[[TaskBatch], dict[str, Tensor]]:
        """The meta-step, captured where it can be."""
        return capture(self._meta_step) if self._captures else self._meta_step

    @property
    def _captures(self) -> bool:
        # Processes that share tasks agree on the host, in every meta-step, whether all is well.
        config = self.config
        return config.capture and build.on_gpu(config) and self.workers.size == 1

    def _next_stage(self) -> None:
        """Goes on to the next stage of the training."""
        try:
            self.stages.next_stage(self._position)
        except ValueError as error:
            raise TrainingError(f"{error}; {self.run} goes no further") from error
        self.optimizer = build.optimizer(self.config, self.learner)
        self.last_state = self._undo_copy()
        self._run = self._runner()

    def _undo_copy(self) -> finite.LastState | None:
        """Where the state before a meta-step is kept, if meta-steps may be undone."""
        return None if self.config.on_nonfinite == "stop" else finite.LastState(self.learner)

    def _clock(self) -> float:
        """Seconds of the processor; beside a GPU, on which it only waits, seconds."""
        return time.perf_counter() if build.on_gpu(self.config) else time.process_time()

    @property
    def _done(self) -> bool:
        return self._ended and is_last(self.stages)

    @property
    def _ended(self) -> bool:
        """Whether the present stage is over."""
        return self.stages.stage_ended(self._position, self._length)

    @property
    def _position(self) -> float:
        return self.iteration if self.config.max_seconds is None else self.elapsed

    @property
    def _length(self) -> float:
        """How long the present training is; the last one takes all seconds that are left."""
        config, stages = self.config, self.stages
        last = is_last(stages)
        part = 1.0 if last else stages.search_length
        if config.max_seconds is None:
            return config.iterations * part
        if not last:
            return config.max_seconds / stages.stages * part
        return config.max_seconds - stages.stage_start

    @property
    def _fraction(self) -> float:
        """How much of the present training is done."""
        return (self._position - self.stages.stage_start) / self._length

    def _step(self, batch: TaskBatch) -> None:
        started, spent = time.perf_counter(), self._clock()
        self._set_rates()
        measured = self._run(batch)
        self.iteration += 1
        self.elapsed += self.workers.mean(self._clock() - spent)
        dropped = self._watched and not self._settle()
        self.stages.stepped(self.iteration, self._position)
        logging = self.iteration % self.config.log_every == 0
        found = self._read(measured) if logging and not dropped else {}
        self._spent.append(time.perf_counter() - started)
        if logging or dropped:
            self._log_step(found, dropped)

    @property
    def _watched(self) -> bool:
        """Whether the host looks at every meta-step; else when it logs, validates and saves."""
        return not self._captures or self.config.on_nonfinite != "stop"

    def _settle(self) -> bool:
        """Whether the meta-step stands; one that is not finite ends the run or is undone."""
        if not self.workers.any(bool(self.learner.nonfinite)):
            self.skipped.in_a_row = 0
            return True
        policy, reason = self.config.on_nonfinite, self._reason()
        if policy == "stop":
            raise TrainingError(f"{reason}; {self._advice()}")
        self.last_state.undo(self.optimizer)
        skipped = self.skipped
        skipped.count += 1
        skipped.in_a_row += 1
        if skipped.in_a_row > _MOST_SKIPPED:
            raise TrainingError(
                f"{reason}; so were the {_MOST_SKIPPED} meta-steps before; {self._advice()}"
            )
        if policy == "halve":
            skipped.factor /= 2
        left = (
            "" if policy == "skip" else f", the outer rates are {skipped.factor:g} of what was set"
        )
        logger.warning("iteration %d is left out: %s%s", self.iteration, reason, left)
        return False

    def _reason(self) -> str:
        """What is not finite, as exactly as can be told."""
        if self._failure is not None:
            return str(self._failure)
        name = finite.first_nonfinite(self.learner, self.optimizer)
        if name is not None:
            return f"{name} is not finite after iteration {self.iteration}"
        return (
            f"a loss or the meta-gradient is not finite after iteration "
            f"{int(self.learner.iteration)} (in this or in another process)"
        )

    def _advice(self) -> str:
        return (
            f"the last finite state is in {self.run.last_path}; resumed with a lower --meta-lr, "
            "with --clip-norm or with --on-nonfinite skip, the run may get past this"
        )

    def _read(self, measured: dict[str, Tensor]) -> dict[str, float]:
        """The numbers; on a GPU this waits for all steps since it was called last."""
        self._require_finite()
        return metrics.means(measured)

    def _log_step(self, found: Mapping[str, float], dropped: bool = False) -> None:
        record = {
            "iteration": self.iteration,
            "kind": "skipped" if dropped else "train",
            **found,
            **self.stages.status(),
            **self.skipped.status(),
            "seconds": round(statistics.fmean(self._spent), 6),
        }
        self._spent.clear()
        self._write(record)
        if self.reporter and not dropped:
            stages = self.stages.stage + min(1.0, self._fraction)
            self.reporter.step(record, stages / self.stages.stages)

    def _set_rates(self) -> None:
        """Sets the learning rates of this iteration, in place where they lie on the device."""
        factor = build.scheduled(self.config.schedule, self._fraction) * self.skipped.factor
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _meta_step(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Meta-gradient, clipping and optimizer step: on a GPU, what a CUDA graph holds.

        Sets ``learner.nonfinite`` where a loss, the meta-gradient, a parameter or the optimizer's
        state is not finite.

        Returns the totals of what was measured, on the device; nothing where the host has seen
        that there is no meta-gradient to step with.
        """
        if self.last_state is not None:
            self.last_state.keep(self.optimizer)
        self.optimizer.zero_grad()
        measured = self._meta_backward(batch)
        if self._failure is not None:
            return {}
        norm = self._clip()
        nonfinite = self.learner.nonfinite
        nonfinite |= ~norm.isfinite()
        if build.on_gpu(self.config):
            self.optimizer.found_inf = nonfinite.float()
        elif bool(nonfinite):
            return {}
        self.optimizer.step()
        nonfinite |= ~finite.all_finite(finite.floating(self.learner, self.optimizer))
        return {**measured, "gradient_norm": metrics.total(norm)}

    def _require_finite(self) -> None:
        """Ends the training if a meta-step on the device met a number that is not finite."""
        if bool(self.learner.nonfinite):
            raise TrainingError(
                f"{self._reason()} (without capture the step and task are named); {self._advice()}"
            )

    def _meta_backward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Leaves the meta-gradient of all tasks, and returns the totals of what was measured."""
        self._failure = None
        measured: dict[str, Tensor] = {}
        try:
            found = self.learner.meta_backward(batch)
            measured = metrics.totals(found, batch.distribution, self.distributions)
        except FloatingPointError as error:
            self._failure = error
        if self.workers.any(self._failure is not None):
            if self._failure is None:
                self._failure = FloatingPointError(
                    "another process met a number that is not finite"
                )
            self.learner.nonfinite.fill_(True)
            return {}
        self.workers.average_gradients(self.learner)
        # Learners may keep running averages, of their own tasks.
        self.workers.average([b for b in self.learner.buffers() if b.is_floating_point()])
        self.workers.average(list(measured.values()))
        return measured

    def _clip(self) -> Tensor:
        """Clips the meta-gradient where asked, and returns the norm it had before."""
        config = self.config
        parameters = [p for p in self.learner.parameters() if p.grad is not None]
        norm = finite.total_norm([p.grad for p in parameters])
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
        try:
            report = evaluate(
                self.learner,
                self._validation_batches(),
                tasks=config.validation_tasks,
                transductive=config.transductive,
                distributions=self.distributions,
            )
        except FloatingPointError as error:
            raise TrainingError(f"in validation: {error}; {self._advice()}") from error
        record = {
            "iteration": self.iteration,
            "kind": "validation",
            **report.to_dict(),
            **self.stages.status(),
            "eligible": eligible(self.learner, self.stages, report.active)
            and math.isfinite(report.loss),
        }
        if not math.isfinite(report.loss):
            record["loss"] = None
            logger.warning(
                "iteration %d: the validation loss is %s; this checkpoint cannot become the best",
                self.iteration,
                report.loss,
            )
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
        self.records += 1
        if self.log is not None:
            self.log.write({**record, "elapsed": round(self.elapsed, 3)})

    def _save(self, path: Path) -> None:
        """Writes a checkpoint, once the metrics that it counts on are on the disk."""
        if not self.workers.first:
            return
        if self.log is not None:
            self.log.flush()
        checkpoint.save(
            Checkpoint(
                config=self.config.to_dict(),
                iteration=self.iteration,
                learner=self.learner.state_dict(),
                optimizer=self.optimizer.state_dict(),
                best=self.best,
                random_state=torch.get_rng_state(),
                elapsed=self.elapsed,
                skipped=vars(self.skipped),
                records=self.records,
                platform=machine(self.config),
            ),
            path,
        )

    def _restore(self) -> None:
        saved = checkpoint.load(self.run.last_path)
        self._require_same(self._begun_with(saved))
        build.load_state(self.learner, saved.learner, str(self.run.last_path))
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(saved.optimizer)
            self.skipped = Skipped(**saved.skipped)
            torch.set_rng_state(saved.random_state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{self.run.last_path}: {error}") from error
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # on its device; set anew in every iteration
        self.iteration, self.elapsed = saved.iteration, saved.elapsed
        self.best, self.records = saved.best, saved.records
        self._restore_best()
        if not self.workers.first:
            return
        for change in changes(saved.platform, machine(self.config)):
            logger.warning(
                "%s goes on with another %s; its numbers are not those of a run never stopped",
                self.run,
                change,
            )
        self.run.clean()
        metrics.truncate(self.run.metrics_path, self.records)
        atomic.replace_text(self.run.config_path, self.config.to_json())

    def _restore_best(self) -> None:
        """Holds on to the best checkpoint, or chooses it anew where its file is lost."""
        iteration = None if self.best is None else self.best["iteration"]
        kept = not self.workers.first or self.run.restore_best(iteration)
        if self.workers.any(not kept):
            self.best = None
            logger.warning(
                "%s: the best checkpoint, of iteration %d, is lost: from now on it is chosen anew",
                self.run.best_path,
                iteration,
            )

    def _begun_with(self, saved: Checkpoint) -> RunConfig:
        try:
            return RunConfig.from_dict(saved.config)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.run.last_path}: {error}") from error

    def _require_same(self, begun: RunConfig) -> None:
        """Refuses to go on under another configuration, unless it is one that may change.

        A constant schedule may grow longer. What mends a run that was not finite is taken with a
        warning: its numbers are no longer those of a run that was never stopped.
        """
        free = _FREE | {"iterations", "max_seconds"} if begun.schedule == "constant" else _FREE
        for name in begun.differences(self.config):
            if name in free:
                continue
            was, now = getattr(begun, name), getattr(self.config, name)
            if not _mends(name, was, now):
                raise ValueError(f"{self.run} was begun with {name} = {was!r}, got {now!r}")
            if self.workers.first:
                logger.warning("%s goes on with %s = %r, it was %r", self.run, name, now, was)


def _mends(name: str, was: Any, now: Any) -> bool:
    """Whether a change is one that may help a run whose numbers were not finite."""
    if name == "on_nonfinite":
        return True
    if name in ("meta_lr", "mask_lr"):
        return was is not None and now is not None and now < was
    return name == "clip_norm" and now is not None


def eligible(learner: MetaLearner, stages: Stages, active: float) -> bool:
    """Whether a checkpoint may become the best: not in a search, nor before its budget holds."""
    if not is_last(stages):
        return False
    budget = getattr(learner, "budget", None)
    return budget is None or abs(active - budget) <= BUDGET_TOLERANCE
