"""Evaluations of runs: made, kept in their folders, and read again."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasparse_ext import _atomic as atomic
from metasparse_ext import data as data_sets
from metasparse_ext._arguments import (
    refuse,
    require,
    require_path,
    require_text,
    require_type,
)
from metasparse_ext._records import check_fields
from metasparse_ext.algorithms.tasks import TaskFunction
from metasparse_ext.training import build, metrics
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.parts import Data, Learner, Model, Parts
from metasparse_ext.training.run import Run
from metasparse_ext.training.scores import LATER, Evaluation, evaluate
from metasparse_ext.training.setting import Setting, check_setting

_SEED = 2_000_003
# A list of numbers in indented JSON, a line each.
_NUMBERS = re.compile(r"\[\n([-+.,\deE\s]+)\]")


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation of a run, as kept in its folder.

    Attributes:
        setting: Data set, split and kind of task, in words.
        name: The split, and what differs from the run's own setting: what its files are called.
        drawn: How the tasks were drawn, ``data``, ``split``, ``ways``, ``shots`` and ``queries``;
            empty in files of earlier versions.
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
    name: str = ""
    drawn: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        wanted = {entry.name for entry in dataclasses.fields(Evaluation)} - {"usage", "measure"}
        named = {"accuracy" if name == self.measure else name for name in self.numbers}
        fits = (named | LATER.keys()) - {"measure"} == wanted
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


def evaluate_run(run: Run, **options: Any) -> RunEvaluation:
    """:func:`evaluate_best`, and :func:`keep` what it found.

    Raises:
        CheckpointError, DataError: As :func:`evaluate_best`.
        OSError: If it cannot be written.
    """
    evaluation, found = evaluate_best(run, **options)
    keep(run, evaluation, found)
    return evaluation


def evaluate_best(
    run: Run,
    *,
    tasks: int | None = None,
    split: str = "test",
    transductive: bool | None = None,
    adapt_steps: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    data: str | Data | None = None,
    root: str | None = None,
    device: str | None = None,
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
        ways: Classes of a task, if fewer than the run's, which the network has outputs for.
        shots, queries: Support and query images of each class, if not the run's.
        data: Another data set, whose images are brought to the size and channels of the network's;
            or data of one's own, as for :class:`~metasparse_ext.training.Trainer`.
        root: Where the data set's files are now, if not where the run found them.
        device: The torch device, if not the run's.
        model, learner, loss, metric: What the run was trained with, where that has no name to be
            imported by; it is left as it is.

    Raises:
        CheckpointError: If the folder holds no run.
        DataError: If the data cannot be had.
        ValueError: If an object is missing that the run was trained with, or is another.
    """
    owner = "evaluate_run"
    require_type(owner, "run", run, Run, "a Run")
    own = None if isinstance(data, str) else data
    named = {
        **{"tasks": tasks, "transductive": transductive, "ways": ways, "shots": shots},
        **{"queries": queries, "data": data if isinstance(data, str) else None},
    }
    check_setting(owner, split=split, adapt_steps=adapt_steps, **named)
    given = Parts(data=own, model=model, learner=learner, loss=loss, metric=metric)
    given.check(owner)
    config = _moved(owner, run, root=root, device=device)
    config = given.require_for(owner, config)
    setting = Setting.of(config, split=split, **named)
    asked = config.replace(
        data=setting.data,
        ways=setting.ways,
        shots=setting.shots,
        evaluation_queries=setting.queries,
    )
    classes = _tasks(run, config, asked, split, own)
    outputs = build.outputs(classes)
    made = build.trained(run, config, classes.shape, outputs=outputs, given=given)
    changed = adapt_steps is not None and adapt_steps != made.adapt_steps
    if adapt_steps is not None:
        made.adapt_steps = adapt_steps
    found = evaluate(
        made,
        build.held_out_episodes(asked, classes, seed=_SEED),
        tasks=setting.tasks,
        transductive=setting.transductive,
        distributions=build.distributions(classes),
        ways=setting.ways,
    )
    drawn = ("data", "split", "ways", "shots", "queries")
    return RunEvaluation(
        setting=build.setting(asked, classes),
        adapt_steps=made.adapt_steps,
        checkpoint="best" if run.has_best else "last",
        iteration=int(made.iteration),
        budget=getattr(made, "budget", None),
        seconds=_seconds(run),
        numbers=found.to_dict(),
        name=setting.name(config, adapt_steps if changed else None),
        drawn={name: getattr(setting, name) for name in drawn},
    ), found


def require_alike(owner: str, runs: Iterable[Run], **setting: Any) -> None:
    """Refuses runs whose evaluations in a setting would be on tasks of several kinds.

    Raises:
        CheckpointError: If a folder holds no run.
        TypeError, ValueError: If they would be, or the setting cannot be.
    """
    setting.pop("adapt_steps", None)
    _require_one_kind(owner, {str(r): _words(Setting.of(r.config(), **setting)) for r in runs})


def require_one_task(owner: str, evaluations: Mapping[str, RunEvaluation]) -> None:
    """Refuses evaluations, by the label of their run, on tasks of several kinds.

    Raises:
        ValueError: saying which they are.
    """
    kinds = {}
    for label, each in evaluations.items():
        kinds[label] = {
            "setting": each.setting,
            "tasks": f"{each.numbers['tasks']} tasks",
            "manner": _manner(each.numbers["transductive"]),
            "measure": each.measure,
        }
        if "queries" in each.drawn:  # not in files of earlier versions
            kinds[label]["queries"] = f"{each.drawn['queries']} queries a class"
    _require_one_kind(owner, kinds)


def _words(setting: Setting) -> dict[str, str]:
    return {
        "setting": str(setting),
        "tasks": f"{setting.tasks} tasks",
        "manner": _manner(setting.transductive),
        "queries": f"{setting.queries} queries a class",
    }


def _manner(transductive: bool) -> str:
    return "transductive" if transductive else "not transductive"


def _require_one_kind(owner: str, kinds: Mapping[str, Mapping[str, str]]) -> None:
    (first, kind), *others = kinds.items()
    for label, other in others:
        differ = [name for name in kind if other.get(name, kind[name]) != kind[name]]
        if differ:
            texts = (", ".join(each[name] for name in differ) for each in (kind, other))
            came = " and ".join(
                f"{text} ({by})" for text, by in zip(texts, (first, label), strict=True)
            )
            refuse(owner, "evaluations", "of one kind of task", came)


def _tasks(
    run: Run, config: RunConfig, asked: RunConfig, split: str, given: Data | None
) -> build.Tasks:
    """What tasks are drawn from: the run's data, others by name, or those that are given.

    Images of another data set are brought to the shape that the network takes.
    """
    if given is not None or asked.data == config.data:
        return build.images(asked, split, given)
    if "+" in config.data and build.knows_distributions(config):
        expected = f"{config.data!r}, for {config.learner} has a part for each of these"
        refuse("evaluate_run", "data", expected, repr(asked.data))
    shape = run.image_shape()
    if shape is None or len(shape) != 3 or build.is_own(asked.data):
        return build.images(asked, split)
    channels, side, _ = shape
    return data_sets.load(asked.data, config.root, split, image_size=side, channels=channels)


def keep(run: Run, evaluation: RunEvaluation, found: Evaluation) -> None:
    """Writes an evaluation to the run folder, in files of its name.

    Raises:
        OSError: If it cannot be written.
    """
    arrays = {name: values.numpy() for name, values in found.usage.items()}
    atomic.replace(run.usage_path(evaluation.name), _npz(arrays))
    text = json.dumps(vars(evaluation), indent=2) + "\n"
    atomic.replace_text(run.evaluation_path(evaluation.name), _NUMBERS.sub(_in_a_line, text))


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


def kept(run: Run, name: str = "test") -> RunEvaluation | None:
    """Reads the evaluation of a name that :func:`evaluate_run` kept, if there is one.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = run.evaluation_path(name)
    if not path.exists():
        return None
    with _reading(path, "evaluation"):
        # Files of earlier versions do not say their name.
        return RunEvaluation(**{"name": name, **json.loads(path.read_text(encoding="utf-8"))})


def find(run: Run, *, adapt_steps: int | None = None, **setting: Any) -> RunEvaluation | None:
    """Reads the evaluation in a setting, as :func:`evaluate_best` takes it, if it was kept.

    Raises:
        CheckpointError: If the folder holds no run, or the file is damaged.
        TypeError, ValueError: If the setting cannot be.
    """
    config = run.config()
    wanted = Setting.of(config, **setting)
    # Steps that are the run's own are not part of the name.
    for steps in dict.fromkeys((adapt_steps, None)):
        evaluation = kept(run, wanted.name(config, steps))
        if evaluation is not None and adapt_steps in (None, evaluation.adapt_steps):
            return evaluation
    return None


def usage(run: Run, name: str = "test") -> dict[str, NDArray[np.float64]] | None:
    """Reads the fraction of evaluated tasks that used each kernel, (O, I) by layer.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = run.usage_path(name)
    if not path.exists():
        return None
    with _reading(path, "kernel usage"), np.load(path) as arrays:
        return dict(arrays)


def _in_a_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[1].split())}]"


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
