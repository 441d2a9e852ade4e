"""Evaluations of runs, and the masks that they learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasparse_ext import _atomic as atomic
from metasparse_ext import _entries
from metasparse_ext import data as data_sets
from metasparse_ext._arguments import (
    LARGEST,
    refuse,
    require,
    require_path,
    require_text,
    require_type,
)
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.tasks import TaskFunction
from metasparse_ext.data.batch import is_image
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.training import build, metrics
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.kept import RunEvaluation, keep, kept, npz
from metasparse_ext.training.parts import Data, Learner, Model, Parts
from metasparse_ext.training.run import Run
from metasparse_ext.training.scores import Evaluation, evaluate
from metasparse_ext.training.setting import Setting, check_setting

_SEED = 2_000_003


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
    every_set: bool | None = None,
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
        every_set: One task of every set of ``ways`` classes of the split, instead of ``tasks``
            that are drawn.
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
        **{"queries": queries, "every_set": every_set},
        "data": data if isinstance(data, str) else None,
    }
    check_setting(owner, split=split, adapt_steps=adapt_steps, **named)
    given = Parts(data=own, model=model, learner=learner, loss=loss, metric=metric)
    given.check(owner)
    config = _moved(owner, run, root=root, device=device)
    begun, config = config, given.require_for(owner, config)
    setting = Setting.of(config, split=split, **named)
    asked = config.replace(
        data=setting.data,
        ways=setting.ways,
        shots=setting.shots,
        evaluation_queries=setting.queries,
    )
    classes = _tasks(run, config, asked, split, own)
    count = _count(owner, setting, classes)
    outputs = build.outputs(classes)
    if outputs is not None:
        require(ways is None, owner, "ways", f"None, {classes} has targets, not classes", ways)
    made = _made(owner, run, config, classes, given)
    changed = adapt_steps is not None and adapt_steps != made.adapt_steps
    if adapt_steps is not None:
        made.adapt_steps = adapt_steps
    found = evaluate(
        made,
        build.held_out_episodes(asked, classes, seed=_SEED, every_set=setting.every_set),
        tasks=count,
        transductive=setting.transductive,
        distributions=build.distributions(classes),
        ways=setting.ways if setting.ways < config.ways else None,
    )
    drawn = ("data", "split", "ways", "shots", "queries", "every_set")
    return RunEvaluation(
        setting=build.setting(asked, classes),
        adapt_steps=made.adapt_steps,
        checkpoint="best" if run.has_best else "last",
        iteration=int(made.iteration),
        budget=getattr(made, "budget", None),
        seconds=_seconds(run),
        numbers=found.to_dict(),
        name=_name(run, begun, setting, adapt_steps if changed else None, found),
        drawn={name: getattr(setting, name) for name in drawn},
    ), found


def _count(owner: str, setting: Setting, classes: build.Tasks) -> int:
    """How many tasks an evaluation is on."""
    if not setting.every_set:
        return setting.tasks
    if not isinstance(classes, ImageClasses):
        refuse(owner, "every_set", f"False, {classes} are no classes of one data set", "True")
    count = math.comb(len(classes), setting.ways)
    if count > LARGEST:
        sets = f"{count} sets of {setting.ways} of {len(classes)} classes"
        refuse(owner, "every_set", f"False, there are {sets}", "True")
    return count


def _made(
    owner: str, run: Run, config: RunConfig, classes: build.Tasks, given: Parts
) -> MetaLearner:
    """The run's learner for some data, or a refusal of data that its network is not for."""
    shape, outputs = classes.shape, build.outputs(classes)
    try:
        return build.trained(run, config, shape, outputs=outputs, given=given)
    except CheckpointError as error:
        trained_on = run.image_shape(), run.outputs()
        if trained_on[0] is None or trained_on == (shape, outputs):
            raise
        said = [
            f"inputs of shape {each}" + ("" if numbers is None else f" and {numbers} targets")
            for each, numbers in (trained_on, (shape, outputs))
        ]
        wanted = f"of {said[0]}, which the network is for"
        raise ValueError(f"{owner}: expected data to be {wanted}, got {said[1]}") from error


def _name(
    run: Run, begun: RunConfig, setting: Setting, adapt_steps: int | None, found: Evaluation
) -> str:
    """The name of an evaluation; on other data than the run's own, another one.

    Objects do not tell whether they are those of the training. Of objects like those, such as
    arrays, the first that the run is evaluated on are taken for its own.
    """
    name = setting.name(begun, adapt_steps)
    if not _entries.is_label(setting.data):
        return name
    if setting.data == begun.data:
        before = kept(run, name)
        tasks = None if before is None else before.numbers["tasks"]
        if before is None or tasks != found.tasks:
            return name
        if before.numbers.get("episodes", "") in ("", found.episodes):
            return name
    return setting.name(begun, adapt_steps, found.episodes)


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
    _require_one_kind(owner, {label: _kind(each) for label, each in evaluations.items()})


def by_kind(evaluations: Mapping[str, RunEvaluation]) -> list[dict[str, RunEvaluation]]:
    """The evaluations on tasks of one kind together, each lot in the order given."""
    lots: list[dict[str, RunEvaluation]] = []
    for label, each in evaluations.items():
        for lot in lots:
            if _kind(next(iter(lot.values()))) == _kind(each):
                lot[label] = each
                break
        else:
            lots.append({label: each})
    return lots


def _kind(evaluation: RunEvaluation) -> dict[str, str]:
    every = ", one of every set of classes" if evaluation.drawn.get("every_set") else ""
    kind = {
        "setting": evaluation.setting,
        "tasks": f"{evaluation.numbers['tasks']} tasks{every}",
        "manner": _manner(evaluation.numbers["transductive"]),
        "measure": evaluation.measure,
    }
    if "queries" in evaluation.drawn:  # not in files of earlier versions
        kind["queries"] = f"{evaluation.drawn['queries']} queries a class"
    return kind


def _words(setting: Setting) -> dict[str, str]:
    return {
        "setting": str(setting),
        "tasks": setting.tasks_in_words,
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
    if not is_image(shape) or build.is_own(asked.data):
        return build.images(asked, split)
    channels, side, _ = shape
    return data_sets.load(asked.data, config.root, split, image_size=side, channels=channels)


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
    atomic.replace(path, npz(small))
    return arrays


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
