"""The training loop: episodes, meta-steps, validation, checkpoints."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metasparse_ext.training import metrics, outer
from metasparse_ext.training.distributed import StopRequest
from metasparse_ext.training.meta_step import MOST_SKIPPED
from metasparse_ext.training.scores import evaluate
from metasparse_ext.training.session import Session
from metasparse_ext.training.stages import eligible, is_last, length

logger = logging.getLogger("metasparse_ext")


class TrainingError(Exception):
    """Training that cannot go on; its message says what was saved and where."""


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        iteration: Meta-iterations done.
        interrupted: Whether a signal ended it early; the run can be resumed.
        best: The validation record of the best eligible checkpoint, if any.
        less_is_better: Whether the run was judged by its loss, or by another error.
    """

    iteration: int
    interrupted: bool
    best: Mapping[str, Any] | None
    less_is_better: bool = False


class Trainer(Session):
    """Trains a learner and leaves a run folder.

    A resumed run goes on from the last checkpoint, and its metrics (times apart) and weights equal
    those of a run that was never stopped.

    Args:
        config: What to train. A run that goes on must be given the configuration it was begun with;
            only ``iterations`` or ``max_seconds`` may have grown.
        run: The run folder. One that holds a checkpoint goes on from it; another is begun, and
            so is one that has done no iteration, where the configuration is another.
        reporter: Is told what happens, or several are; by default "lines", which prints one once
            in a while and at every validation. Other names: "tensorboard", "wandb". None is silent.
            One that raises is told no more, with a warning, and training goes on.
        workers: The processes among which the tasks of a meta-batch are divided. Only the first
            of them writes, and has reporters by name; what others are given should be silent.
        data: Data in place of those that the configuration names: a mapping from "train", "val" and
            "test" to image classes, arrays (images, labels), or meta-batches (a list, a sampler
            with ``[index]``, or anything to iterate over); or a function that returns those of a
            split.
        model: A network in place of the one that the configuration names, or a function that
            returns one.
        learner: A learner, which brings its model, loss and metric; or a class of learners.
        optimizer: An optimizer of the learner's parameters, or a function that returns one.
        loss, metric: Functions of the outputs (N, ...) and targets (N, ...) of a task.

    What is given is named in the run's configuration: by where it can be imported from, else by its
    class, and a run that goes on must be given one of the same name, and of the same state.

    Raises:
        DataError, CheckpointError, ValueError: If the configuration cannot be built.
        RunInUseError: If another process is training in the folder.
        OSError: If the folder cannot be written.
    """

    def fit(self) -> Outcome:
        """Trains to the end, or until SIGINT or SIGTERM.

        Raises:
            TrainingError: If a meta-step leaves numbers that are not finite and the configuration
                does not say to go on, or too many in a row did. The last checkpoint stays.
        """
        self.reporter.start(self.config, self.iteration)
        try:
            self._take_lock()
            self._train()
        finally:
            self._lock.release()
            close = getattr(self.reporter, "close", None)
            if close is not None:
                close()
        less_is_better = self.measure.less_is_better
        return Outcome(self.iteration, not self._done, self.best, less_is_better)

    def _train(self) -> None:
        config = self.config
        owed = self.workers.any(self._owes_validation())
        with self._open_log() as self.log, StopRequest() as request:
            while owed or not (self._done or self.workers.any(request.stop)):
                if not owed:
                    self._step()
                owed = False
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

    def _owes_validation(self) -> bool:
        """Whether the run was saved where its validation raised: it is made good for first."""
        due = self._ended or self.iteration % self.config.validate_every == 0
        if not (self.workers.first and self.iteration and due):
            return False
        if not self.records:
            return True
        last = metrics.read(self.run.metrics_path)[-1]
        return (last["kind"], last["iteration"]) != ("validation", self.iteration)

    @contextmanager
    def _saved_first(self) -> Generator[None]:
        """Saves the run before an error goes on that code of one's own raised, if it is whole."""
        random_state = torch.get_rng_state()
        try:
            yield
        except FloatingPointError:
            raise
        except Exception as error:
            if self.meta_step.whole and not bool(self.learner.nonfinite):
                torch.set_rng_state(random_state)
                self._save_before(error)
            raise

    def _save_before(self, error: Exception) -> None:
        try:
            self._save(self.run.last_path)
        except OSError as other:
            logger.warning("%s cannot be saved: %s", self.run, other)
            return
        logger.warning(
            "%s is saved at iteration %d, before %s: it can go on from there",
            self.run,
            self.iteration,
            type(error).__name__,
        )

    def _next_stage(self) -> None:
        """Goes on to the next stage of the training."""
        try:
            self.stages.next_stage(self._position)
        except ValueError as error:
            raise TrainingError(f"{error}; {self.run} goes no further") from error
        self.meta_step.begin()

    def _clock(self) -> float:
        """Seconds of the processor; beside a GPU, on which it only waits, seconds."""
        return time.perf_counter() if outer.on_gpu(self.config) else time.process_time()

    @property
    def _done(self) -> bool:
        return self._ended and is_last(self.stages)

    @property
    def _ended(self) -> bool:
        """Whether the present stage is over."""
        return self.stages.stage_ended(self._position, length(self.stages, self.config))

    @property
    def _fraction(self) -> float:
        """How much of the present stage is done."""
        return (self._position - self.stages.stage_start) / length(self.stages, self.config)

    def _step(self) -> None:
        with self._saved_first():
            batch = next(self.batches)
        started, spent = time.perf_counter(), self._clock()
        factor = outer.scheduled(self.config.schedule, self._fraction) * self.skipped.factor
        self.meta_step.set_rates(factor)
        with self._saved_first():
            sums = self.meta_step(batch)
        self.iteration += 1
        self.elapsed += self.workers.mean(self._clock() - spent)
        dropped = self._watched and not self._settle()
        self.stages.stepped(self.iteration, self._position)
        logging = self.iteration % self.config.log_every == 0
        found = self._read(sums) if logging and not dropped else {}
        self._spent.append(time.perf_counter() - started)
        if logging or dropped:
            self._log_step(found, dropped)

    @property
    def _watched(self) -> bool:
        """Whether the host looks at every meta-step; else when it logs, validates and saves."""
        return not self.meta_step.captures or self.config.on_nonfinite != "stop"

    def _settle(self) -> bool:
        """Whether the meta-step stands; one that is not finite ends the run or is undone."""
        if not self.workers.any(bool(self.learner.nonfinite)):
            self.skipped.in_a_row = 0
            return True
        policy, reason = self.config.on_nonfinite, self.meta_step.reason(self.iteration)
        if policy == "stop":
            raise TrainingError(f"{reason}; {self._advice()}")
        self.meta_step.undo()
        skipped = self.skipped
        skipped.add(halve=policy == "halve")
        if skipped.too_many:
            raise TrainingError(
                f"{reason}; so were the {MOST_SKIPPED} meta-steps before; {self._advice()}"
            )
        left = (
            "" if policy == "skip" else f", the outer rates are {skipped.factor:g} of what was set"
        )
        logger.warning("iteration %d is left out: %s%s", self.iteration, reason, left)
        return False

    def _advice(self) -> str:
        return (
            f"the last finite state is in {self.run.last_path}; resumed with a lower --meta-lr, "
            "with --clip-norm or with --on-nonfinite skip, the run may get past this"
        )

    def _read(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The numbers; on a GPU this waits for all steps since it was called last."""
        self._require_finite()
        return metrics.means(sums)

    def _log_step(self, found: Mapping[str, float], dropped: bool = False) -> None:
        record = {
            "iteration": self.iteration,
            "kind": "skipped" if dropped else "train",
            **self.measure.remark(),
            **found,
            **self.stages.status(),
            **self.skipped.status(),
            "seconds": round(statistics.fmean(self._spent), 6),
        }
        self._spent.clear()
        self._write(record)
        if not dropped:
            stages = self.stages.stage + min(1.0, self._fraction)
            self.reporter.step(record, stages / self.stages.stages)

    def _require_finite(self) -> None:
        """Ends the training if a meta-step on the device met a number that is not finite."""
        if bool(self.learner.nonfinite):
            reason = self.meta_step.reason(self.iteration)
            raise TrainingError(
                f"{reason} (without capture the step and task are named); {self._advice()}"
            )

    def _validate(self) -> None:
        config = self.config
        try:
            with self._saved_first():
                found = evaluate(
                    self.learner,
                    self._validation_batches(),
                    tasks=config.validation_tasks,
                    transductive=config.transductive,
                    distributions=self.distributions,
                )
        except FloatingPointError as error:
            if config.on_nonfinite == "stop":
                raise TrainingError(f"in validation: {error}; {self._advice()}") from error
            left_out = "it is left out, and this checkpoint cannot become the best"
            logger.warning("iteration %d: in validation: %s; %s", self.iteration, error, left_out)
            return
        record = {
            "iteration": self.iteration,
            "kind": "validation",
            **self.measure.remark(),
            **found.summary(),
            **self.stages.status(),
            "eligible": eligible(self.learner, self.stages, found.active)
            and math.isfinite(found.loss)
            and math.isfinite(found.accuracy),
        }
        if found.unscored:
            logger.warning(
                "iteration %d: %s has no finite value on %d of %d tasks, which its mean leaves out",
                self.iteration,
                found.measure,
                found.unscored,
                found.tasks,
            )
        if not math.isfinite(found.loss):
            record["loss"] = None
            logger.warning(
                "iteration %d: the validation loss is %s; this checkpoint cannot become the best",
                self.iteration,
                found.loss,
            )
        better = bool(record["eligible"]) and (
            self.best is None or self.measure.better(record, self.best)
        )
        self._write(record)
        if better:
            self.best = record
            self._save(self.run.best_path)
        self.reporter.validation(record, better)

    def _open_log(self) -> AbstractContextManager[metrics.MetricsFile | None]:
        return metrics.MetricsFile(self.run.metrics_path) if self.workers.first else nullcontext()

    def _write(self, record: Mapping[str, Any]) -> None:
        self.records += 1
        if self.log is not None:
            self.log.write({**record, "elapsed": round(self.elapsed, 3)})
