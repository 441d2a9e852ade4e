"""What a training is made of, and how it begins, is saved, and goes on from what was saved."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from metasparse_ext import _atomic as atomic
from metasparse_ext._arguments import refuse, require_type
from metasparse_ext.algorithms.tasks import TaskFunction
from metasparse_ext.data import TaskBatch, augmented, on_device
from metasparse_ext.data.augment import augment_of
from metasparse_ext.training import build, checkpoint, metrics
from metasparse_ext.training.checkpoint import Checkpoint, CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.distributed import ALONE, Workers
from metasparse_ext.training.measure import measure_of
from metasparse_ext.training.memory import Chunk, check_chunks, chunk_of
from metasparse_ext.training.meta_step import MetaStep, Skipped
from metasparse_ext.training.metrics import Reporter
from metasparse_ext.training.own_tasks import OwnTasks
from metasparse_ext.training.parts import Data, Learner, Model, Optimizer, Parts
from metasparse_ext.training.reporters import Reporters, Told
from metasparse_ext.training.run import Run, RunInUseError, RunLock, changes, machine
from metasparse_ext.training.stages import length, stages_of

logger = logging.getLogger("metasparse_ext")

_VALIDATION_SEED = 1_000_003


class Session:
    """A training that has been built, and begun or resumed: what the loop of a trainer runs on.

    The arguments are those of :class:`~metasparse_ext.training.Trainer`.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Run,
        *,
        reporter: Told = "lines",
        workers: Workers = ALONE,
        data: Data | None = None,
        model: Model | None = None,
        learner: Learner | None = None,
        optimizer: Optimizer | None = None,
        loss: TaskFunction | None = None,
        metric: TaskFunction | None = None,
    ) -> None:
        require_type("Trainer", "config", config, RunConfig, "a RunConfig")
        require_type("Trainer", "run", run, Run, "a Run")
        require_type("Trainer", "workers", workers, Workers, "Workers")
        self.reporter: Reporter = Reporters.of("Trainer", reporter, run, first=workers.first)
        self.given = Parts(
            data=data, model=model, learner=learner, optimizer=optimizer, loss=loss, metric=metric
        )
        self.given.check("Trainer")
        self._asked = self.given.labelled(config)
        self.config = build.resolved(self._asked, kind=self.given.kind)
        self.given.require_all("Trainer", self.config)
        self.run = run
        self.workers = workers
        self.iteration = self.records = 0
        self._spent: list[float] = []  # seconds of the meta-iterations since the last record
        self.elapsed = 0.0
        self.best: dict[str, Any] | None = None
        self.skipped = Skipped()
        self.log: metrics.MetricsFile | None = None
        self.chunk: Chunk | None = None
        self._lock = RunLock(run.lock_path)
        try:
            self._prepare()
        except BaseException:
            self._lock.release()
            raise

    def _prepare(self) -> None:
        """Builds what the configuration names, and restores or begins the run."""
        run, workers, given = self.run, self.workers, self.given
        workers.require_shares(self.config.tasks)
        self._load()
        config = self.config
        # One answer for all, and before the first of them makes the folder.
        resuming = workers.any(run.started)
        if workers.any(workers.first and run.lost):
            run.refuse_lost()
        if resuming:
            self._take_lock()
            resuming = not workers.any(workers.first and self._begins_anew())
        # Before a network is built for more classes than there are.
        self._validation_batches()
        start = config.replace(init_from=None) if resuming else config
        outputs = build.outputs(self.classes)
        self.learner = build.learner(start, self.classes.shape, outputs=outputs, given=given)
        self.measure = measure_of(self.learner)
        self.stages = stages_of(self.learner)
        self._require_fresh_optimizers()
        if config.max_seconds is None:
            self.stages.plan(config.iterations)
        self.meta_step = MetaStep(
            config,
            self.learner,
            workers,
            self.distributions,
            optimizer=given.optimizer,
            measure=self.measure,
        )
        if resuming:
            self._restore()
        self.batches = self._training_batches()
        if config.memory is not None:
            self._fit_into(config.memory, resuming)
        if not resuming:
            self._begin()
        if self.chunk is not None and workers.first:
            atomic.replace_text(run.memory_path, json.dumps(self.chunk.to_dict()) + "\n")

    def _training_batches(self) -> Iterator[TaskBatch]:
        """This process's share of the meta-batches from where the run stands, on its device."""
        config, alone = self.config, self.workers.size == 1
        drawn = build.episodes(
            config, self.classes, seed=config.seed, tasks=config.tasks, start=self.iteration
        )

        def changed(batches: Iterator[TaskBatch]) -> Iterator[TaskBatch]:
            if config.augment is None:
                return batches
            augment = augment_of("RunConfig", "augment", config.augment)
            return augmented(batches, augment, seed=config.seed, start=self.iteration)

        # Whole meta-batches are changed, whatever the number of processes that share them.
        drawn = drawn if alone else changed(drawn)
        batches = on_device(map(self.workers.share, drawn), config.device)
        return changed(batches) if alone else batches

    def _begins_anew(self) -> bool:
        """Whether a run that did no iteration, such as one that failed at once, asks for another.

        Its checkpoint of the beginning goes, which holds it to the former configuration.
        """
        if not self.run.untrained:
            return False
        begun = self.run.begun_with(checkpoint.read(self.run.last_path))
        differ = begun.differences(self.config)
        if differ:
            named = " and ".join(differ)
            logger.warning(
                "%s had done no iteration: it begins anew, with other %s", self.run, named
            )
        return bool(differ)

    def _fit_into(self, budget: str, resuming: bool) -> None:
        """Has the learner take as many tasks at a time as fit into a budget of memory.

        A run that goes on takes as many as before. Processes that share tasks agree on the fewest.
        """
        learner, workers = self.learner, self.workers
        check_chunks(learner, budget)
        chunk = self.run.chunk(budget) if resuming else None
        if workers.any(chunk is None) or chunk is None:
            chunk = self._measured_chunk(budget)
        self.chunk = chunk
        # A run that goes on with fewer processes has more tasks in each.
        if chunk.tasks < workers.tasks(self.config.tasks):
            learner.task_chunk = chunk.tasks

    def _measured_chunk(self, budget: str) -> Chunk:
        """What fits into every process, by measurement of the first batch."""
        first = next(self.batches)
        self.batches = itertools.chain([first], self.batches)
        chunk, failure = None, None
        try:
            chunk = chunk_of(self.learner, first, budget)
        except ValueError as error:
            failure = error
        if self.workers.any(chunk is None) or chunk is None:
            raise failure or ValueError("another process cannot keep to its budget of memory")
        own = chunk.tasks
        fewest = next(n for n in itertools.count(1) if self.workers.any(own <= n))
        return dataclasses.replace(chunk, tasks=fewest)

    def _load(self) -> None:
        """Loads the data, and tells the learner's options of them."""
        config, given = self.config, self.given.data
        self.classes = build.images(config, "train", given)
        self.validation_classes = build.images(config, config.validation_split, given)
        build.require_one_shape(self.classes, self.validation_classes)
        build.require_test_shape(config, self.classes, given)
        self.distributions = build.distributions(self.classes)
        self.config = build.resolved(self._asked, self.classes, self.given.kind)
        build.require_loss(self.config, self.classes)
        if isinstance(self.validation_classes, OwnTasks):
            self.validation_classes.require_tasks(_VALIDATION_SEED, config.validation_tasks)

    def _require_fresh_optimizers(self) -> None:
        """Refuses one optimizer for several stages, of which each begins with a fresh one."""
        if self.stages.stages > 1 and isinstance(self.given.optimizer, torch.optim.Optimizer):
            wanted = f"a function that returns one, for each of {self.stages.stages} stages"
            refuse("Trainer", "optimizer", wanted, type(self.given.optimizer).__name__)

    def _begin(self) -> None:
        """Makes the run folder and its first checkpoint."""
        run, first = self.run, self.workers.first
        if first:
            atomic.make_folder(run.folder)
        self._take_lock()
        if self.workers.any(run.started and not run.untrained):
            raise RunInUseError(f"{run}: another process has begun a run in this folder")
        if first:
            run.create(self.config, self.classes.shape, build.outputs(self.classes))
        self._save(run.last_path)

    def _take_lock(self) -> None:
        """Refuses to train where another process does."""
        taken = not self.workers.first or self._lock.acquire()
        if self.workers.any(not taken):
            raise RunInUseError.of(self.run)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The outer optimizer; every stage has its own."""
        return self.meta_step.optimizer

    @property
    def _position(self) -> float:
        return self.iteration if self.config.max_seconds is None else self.elapsed

    def _validation_batches(self) -> Iterator[TaskBatch]:
        """The fixed tasks of every validation."""
        return build.held_out_episodes(self.config, self.validation_classes, seed=_VALIDATION_SEED)

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
        begun = self.run.begun_with(saved)
        mending = self.config.mending_changes(begun, str(self.run))
        for name, was, now in mending if self.workers.first else ():
            logger.warning("%s goes on with %s = %r, it was %r", self.run, name, now, was)
        build.load_state(self.learner, saved.learner, str(self.run.last_path))
        try:
            self.meta_step.load_optimizer(saved.optimizer)
            self.skipped = Skipped(**saved.skipped)
            torch.set_rng_state(saved.random_state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{self.run.last_path}: {error}") from error
        self.iteration, self.elapsed = saved.iteration, saved.elapsed
        self._require_not_shorter(begun)
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
        self.run.restore_last()
        metrics.truncate(self.run.metrics_path, self.records)
        self.run.describe(self.config, self.classes.shape, build.outputs(self.classes))

    def _require_not_shorter(self, begun: RunConfig) -> None:
        """Refuses a stage, or a training of so many seconds, that would have ended before now."""
        name = "iterations" if self.config.max_seconds is None else "max_seconds"
        was, now = getattr(begun, name), getattr(self.config, name)
        done = self._position - self.stages.stage_start
        if was == now or done <= length(self.stages, self.config):
            return
        if name == "iterations":
            reached = f"{done:.0f} iterations"
        else:
            reached = f"{self.elapsed:.3g} seconds"
        wanted = f"no less than what {self.run} has done already, {reached}"
        refuse("RunConfig", name, wanted, repr(now))

    def _restore_best(self) -> None:
        """Holds on to the best checkpoint, or chooses it anew where its file is lost."""
        iteration = None if self.best is None else self.best["iteration"]
        kept = not self.workers.first or self.run.restore_best(iteration, self.config)
        if self.workers.any(not kept):
            self.best = None
            logger.warning(
                "%s: the best checkpoint, of iteration %d, is lost: from now on it is chosen anew",
                self.run.best_path,
                iteration,
            )
