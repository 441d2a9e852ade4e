"""Evaluations of runs: made, kept in their folders, and read again."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasparse_ext import _atomic as atomic
from metasparse_ext._arguments import (
    LARGEST,
    require,
    require_choice,
    require_count,
    require_flag,
    require_path,
    require_size,
    require_text,
    require_type,
)
from metasparse_ext._records import check_fields
from metasparse_ext.algorithms.tasks import TaskFunction
from metasparse_ext.training import build, metrics
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.config import SPLITS, RunConfig
from metasparse_ext.training.parts import Data, Learner, Model, Parts
from metasparse_ext.training.run import Run
from metasparse_ext.training.scores import Evaluation, evaluate

_SEED = 2_000_003


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation of a run, as kept in its folder.

    Attributes:
        setting: Data set, split and kind of task, in words.
        adapt_steps: Gradient steps of adaptation; without meaning where a solver adapts.
        checkpoint: ``best`` or, where no checkpoint met the budget, ``last``.
        iteration: Meta-iterations behind that checkpoint.
        budget: Fraction of kernels asked for, if any.
        seconds: Median seconds of a training iteration, if the run has metrics.
        numbers: The fields of :class:`Evaluation`, without the kernel usage.
    """

    setting: str
    adapt_steps: int
    checkpoint: str
    iteration: int
    budget: float | None
    seconds: float | None
    numbers: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_fields(self)
        wanted = {entry.name for entry in dataclasses.fields(Evaluation)} - {"usage", "measure"}
        named = {"accuracy" if name == self.measure else name for name in self.numbers}
        fits = (named | {"distributions"}) - {"measure"} == wanted
        require(fits, "RunEvaluation", "numbers", "those of an Evaluation", sorted(self.numbers))
        Evaluation.from_dict(self.numbers)

    @property
    def measure(self) -> str:
        """What the run was judged by: the key of its ``score`` among the numbers."""
        return self.numbers.get("measure", "accuracy")

    @property
    def score(self) -> float:
        """The accuracy, or what takes its place."""
        return self.numbers[self.measure]


def evaluate_run(run: Run, *, split: str = "test", **options: Any) -> RunEvaluation:
    """:func:`evaluate_best` on a split, and :func:`keep` what it found.

    Raises:
        CheckpointError, DataError: As :func:`evaluate_best`.
        OSError: If it cannot be written.
    """
    evaluation, found = evaluate_best(run, split=split, **options)
    keep(run, split, evaluation, found)
    return evaluation


def evaluate_best(
    run: Run,
    *,
    tasks: int | None = None,
    split: str = "test",
    transductive: bool | None = None,
    adapt_steps: int | None = None,
    root: str | None = None,
    device: str | None = None,
    data: Data | None = None,
    model: Model | None = None,
    learner: Learner | None = None,
    loss: TaskFunction | None = None,
    metric: TaskFunction | None = None,
) -> tuple[RunEvaluation, Evaluation]:
    """Evaluates a run's best checkpoint on a split, without writing what it found.

    Args:
        run: The run.
        tasks, transductive: As in :func:`evaluate`; by default as the run's configuration says.
        split: ``train``, ``val`` or ``test``.
        adapt_steps: Gradient steps of adaptation, if not the run's: sources may take more at test
            time than in training.
        root: Where the data set's files are now, if not where the run found them.
        device: The torch device, if not the run's.
        data: Other data than the run's, as for :class:`~metasparse_ext.training.Trainer`.
        model, learner, loss, metric: What the run was trained with, where that has no name to be
            imported by; it is left as it is.

    Raises:
        CheckpointError: If the folder holds no run.
        DataError: If the data cannot be had.
        ValueError: If an object is missing that the run was trained with, or is another.
    """
    owner = "evaluate_run"
    require_type(owner, "run", run, Run, "a Run")
    require_choice(owner, "split", split, SPLITS)
    if tasks is not None:
        require_size(owner, "tasks", tasks)
    if adapt_steps is not None:
        require_count(owner, "adapt_steps", adapt_steps, most=LARGEST)
    if transductive is not None:
        require_flag(owner, "transductive", transductive)
    given = Parts(data=data, model=model, learner=learner, loss=loss, metric=metric)
    given.check(owner)
    config = _moved(owner, run, root=root, device=device)
    config = given.require_for(owner, config)
    classes = build.images(config, split, data)
    outputs = build.outputs(classes)
    made = build.trained(run, config, classes.shape, outputs=outputs, given=given)
    if adapt_steps is not None:
        made.adapt_steps = adapt_steps
    found = evaluate(
        made,
        build.held_out_episodes(config, classes, seed=_SEED),
        tasks=config.evaluation_tasks if tasks is None else tasks,
        transductive=config.transductive if transductive is None else transductive,
        distributions=build.distributions(classes),
    )
    return RunEvaluation(
        setting=build.setting(config, classes),
        adapt_steps=made.adapt_steps,
        checkpoint="best" if run.has_best else "last",
        iteration=int(made.iteration),
        budget=getattr(made, "budget", None),
        seconds=_seconds(run),
        numbers=found.to_dict(),
    ), found


def keep(run: Run, split: str, evaluation: RunEvaluation, found: Evaluation) -> None:
    """Writes an evaluation to the run folder.

    Raises:
        OSError: If it cannot be written.
    """
    arrays = {name: values.numpy() for name, values in found.usage.items()}
    atomic.replace(run.usage_path(split), _npz(arrays))
    atomic.replace_text(run.evaluation_path(split), json.dumps(vars(evaluation), indent=2) + "\n")


def export_masks(
    run: Run,
    path: str | Path,
    *,
    root: str | None = None,
    model: Model | None = None,
    learner: Learner | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Writes the masks of a run's best meta-parameters to an ``.npz`` file, as bytes 0 and 1.

    Args:
        run: The run.
        path: The file.
        root: Where the data set's files are now, whose images have the shape that the network is
            for, if not where the run found them.
        model, learner: As in :func:`evaluate_best`.

    Returns:
        The masks by layer name: (O, I), or (O, I, kh, kw) with one entry a weight. Tasks may have
        masks of their own; what they use of the kernels is found by :func:`evaluate_run`.

    Raises:
        CheckpointError: If the folder holds no run.
        DataError: If the data cannot be had.
    """
    require_type("export_masks", "run", run, Run, "a Run")
    path = require_path("export_masks", "path", path)
    given = Parts(model=model, learner=learner)
    given.check("export_masks")
    config = _moved("export_masks", run, root=root, device="cpu")
    config = given.require_for("export_masks", config, data=False)
    shape, outputs = build.input_of(run, config)
    masks = build.trained(run, config, shape, outputs=outputs, given=given).masks()
    arrays = {name: mask.double().cpu().numpy() for name, mask in masks.items()}
    small = {name: mask.astype(np.uint8) for name, mask in arrays.items()}
    atomic.replace(path, _npz(small))
    return arrays


def kept(run: Run, split: str = "test") -> RunEvaluation | None:
    """Reads the evaluation that :func:`evaluate_run` kept, if there is one.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = run.evaluation_path(split)
    if not path.exists():
        return None
    with _reading(path, "evaluation"):
        return RunEvaluation(**json.loads(path.read_text(encoding="utf-8")))


def usage(run: Run, split: str = "test") -> dict[str, NDArray[np.float64]] | None:
    """Reads the fraction of evaluated tasks that used each kernel, (O, I) by layer.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = run.usage_path(split)
    if not path.exists():
        return None
    with _reading(path, "kernel usage"), np.load(path) as arrays:
        return dict(arrays)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: not a whole file of {what} ({reason})") from error


def _moved(owner: str, run: Run, *, root: str | None, device: str | None) -> RunConfig:
    """The configuration of a run whose data, or whose device, is another."""
    given = {
        name: value for name, value in (("root", root), ("device", device)) if value is not None
    }
    for name, value in given.items():
        require_text(owner, name, value, empty=False)
    return run.config().replace(**given)


def _seconds(run: Run) -> float | None:
    if not run.metrics_path.is_file():
        return None
    times = [record["seconds"] for record in metrics.read(run.metrics_path) if "seconds" in record]
    return median(times) if times else None


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
