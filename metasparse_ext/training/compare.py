"""Runs against one another on the same tasks: paired tests, and the spread over training seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean, stdev
from typing import Any

from metasparse_ext import _entries
from metasparse_ext._arguments import refuse, require, require_type
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.evaluation import require_one_task
from metasparse_ext.training.kept import RunEvaluation, find, require_present
from metasparse_ext.training.paired import Difference, paired_test
from metasparse_ext.training.run import Run
from metasparse_ext.training.setting import Setting, check_setting

# Fields in which trainings of one kind may differ.
_OF_A_TRAINING = (
    *("seed", "init_from", "preset", "root", "device"),
    *("workers", "capture", "save_every", "log_every"),
)


@dataclass(frozen=True)
class Contender:
    """Trainings that differ in their seed alone.

    Attributes:
        label: What they have in common of their folders' names.
        runs: Their folders.
        scores: The accuracy, or what takes its place, of each over all tasks.
        score: The mean of these.
        spread: Their standard deviation; None of a single one.
        interval: Half the 95 % confidence interval over the tasks; None of several.
        difference: To the first contender's, task by task; None of the first one.
    """

    label: str
    runs: tuple[str, ...]
    scores: tuple[float, ...]
    score: float
    spread: float | None
    interval: float | None
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found, on tasks that ``evaluation`` is one of."""

    evaluation: RunEvaluation
    contenders: tuple[Contender, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        numbers = self.evaluation.numbers
        return {
            "setting": self.evaluation.setting,
            "tasks": numbers["tasks"],
            "transductive": numbers["transductive"],
            "measure": self.evaluation.measure,
            "contenders": [dataclasses.asdict(each) for each in self.contenders],
        }


def compare(
    runs: Sequence[Run],
    *,
    split: str = "test",
    tasks: int | None = None,
    transductive: bool | None = None,
    adapt_steps: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    every_set: bool | None = None,
    data: str | None = None,
) -> Comparison:
    """Compares runs by the evaluations that they keep, each with the first by a paired t-test.

    Runs of one configuration but for the seed are trainings of one contender: the accuracy on a
    task is the mean over them, and how far they spread is said. A run whose learner, model,
    optimizer, loss or metric came as an object without a name is a contender alone: what it was
    made with is not in its configuration.

    Args:
        runs: The runs; the first, and those that belong to it, is what others are compared to.
        split, tasks, transductive, adapt_steps, ways, shots, queries, every_set, data: Which
            evaluations, as :func:`~metasparse_ext.training.evaluate_run` takes them; by default the
            runs' own.

    Raises:
        CheckpointError: If a run keeps no such evaluation, or one without the tasks' accuracies, or
            of another checkpoint than its best one is now.
        ValueError: If the runs make fewer than two contenders, or were not evaluated on the same
            tasks.
    """
    require_type("compare", "runs", runs, (tuple, list), "a sequence of Run")
    for run in runs:
        require_type("compare", "each of runs", run, Run, "a Run")
    setting = {
        **{"split": split, "tasks": tasks, "transductive": transductive, "data": data},
        **{"adapt_steps": adapt_steps, "ways": ways, "shots": shots, "queries": queries},
        "every_set": every_set,
    }
    check_setting("compare", **setting)
    found = {str(run): (run.config(), _kept(run, setting)) for run in runs}
    groups = _grouped(found)
    labels = " and ".join(found) or "none"
    require(len(groups) > 1, "compare", "runs", "of at least two configurations", labels)
    _require_same_episodes({label: evaluation for label, (_, evaluation) in found.items()})
    by_task = [_by_task([found[label][1] for label in group]) for group in groups]
    contenders = [
        _contender(group, found, None if number == 0 else _difference(by_task[0], by_task[number]))
        for number, group in enumerate(groups)
    ]
    return Comparison(next(iter(found.values()))[1], tuple(contenders))


def _kept(run: Run, setting: Mapping[str, Any]) -> RunEvaluation:
    evaluation = find(run, **setting)
    command = f"`metasparse evaluate {' '.join([str(run), *_flags(setting)])}` makes one"
    if evaluation is None:
        raise CheckpointError(f"{run}: there is no evaluation of {_words(run, setting)}; {command}")
    if not evaluation.numbers.get("accuracies"):
        raise CheckpointError(
            f"{run}: its evaluation does not say the accuracy on each task; {command}"
        )
    if evaluation.numbers[evaluation.measure] is None:
        raise CheckpointError(f"{run}: {evaluation.measure} has no finite value on any task")
    require_present(run, evaluation, command)
    return evaluation


def _words(run: Run, setting: Mapping[str, Any]) -> str:
    """Which evaluation of a run is asked for."""
    steps = setting["adapt_steps"]
    of_tasks = {name: value for name, value in setting.items() if name != "adapt_steps"}
    wanted = Setting.of(run.config(), **of_tasks)
    manner = "transductive" if wanted.transductive else "not transductive"
    adapted = "" if steps is None else f", {steps} steps of adaptation"
    return f"{wanted}, {wanted.tasks_in_words}, {manner}{adapted}"


def _flags(setting: Mapping[str, Any]) -> list[str]:
    """What asks for a setting on the command line."""
    flags = []
    for name, value in setting.items():
        flag = name.replace("_", "-")
        if value is True:
            flags.append(f"--{flag}")
        elif value is False and name == "transductive":
            flags.append(f"--no-{flag}")
        elif value is not None and value is not False and value != "test":  # 0 equals False
            flags.append(f"--{flag} {value}")
    return flags


def _grouped(found: Mapping[str, tuple[RunConfig, RunEvaluation]]) -> list[list[str]]:
    """The labels of the trainings of each contender, in the order given."""
    groups: list[tuple[dict[str, Any], set[int], list[str]]] = []
    for label, (config, evaluation) in found.items():
        kind = {**config.to_dict(), "steps": evaluation.adapt_steps}
        kind = {name: value for name, value in kind.items() if name not in _OF_A_TRAINING}
        kind["pretrained"] = config.init_from is not None
        if _has_object(config):
            kind["alone"] = label
        for other, seeds, labels in groups:
            # The same seed twice is no second training.
            if other == kind and config.seed not in seeds:
                seeds.add(config.seed)
                labels.append(label)
                break
        else:
            groups.append((kind, {config.seed}, [label]))
    return [labels for _, _, labels in groups]


def _has_object(config: RunConfig) -> bool:
    """Whether something was an object: its options are not in the configuration."""
    parts = (config.learner, config.model, config.optimizer, config.loss, config.metric)
    return any(part is not None and _entries.is_label(part) for part in parts)


def _require_same_episodes(evaluations: Mapping[str, RunEvaluation]) -> None:
    require_one_task("compare", evaluations)
    (first, evaluation), *others = evaluations.items()
    for label, other in others:
        if other.numbers["episodes"] != evaluation.numbers["episodes"]:
            came = (
                f"others for {label} than for {first}: the images of the data set are not the same"
            )
            refuse("compare", "evaluations", "on the same tasks", came)


def _by_task(evaluations: Sequence[RunEvaluation]) -> list[float | None]:
    """The mean accuracy of trainings on each task; None where a metric has no value for one."""
    each = (evaluation.numbers["accuracies"] for evaluation in evaluations)
    return [None if None in task else fmean(task) for task in zip(*each, strict=True)]


def _difference(first: Sequence[float | None], second: Sequence[float | None]) -> Difference:
    """The paired test on the tasks on which both have a value."""
    both = zip(first, second, strict=True)
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    return paired_test([a for a, _ in pairs], [b for _, b in pairs])


def _contender(
    labels: list[str],
    found: Mapping[str, tuple[RunConfig, RunEvaluation]],
    difference: Difference | None,
) -> Contender:
    numbers = [found[label][1].numbers for label in labels]
    scores = tuple(found[label][1].score for label in labels)
    several = len(labels) > 1
    return Contender(
        label=f"{_shared(labels)}*" if several else labels[0],
        runs=tuple(labels),
        scores=scores,
        score=fmean(scores),
        spread=stdev(scores) if several else None,
        interval=None if several else numbers[0]["interval"],
        difference=difference,
    )


def _shared(labels: Sequence[str]) -> str:
    """What all labels begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*labels, strict=False))
    return "".join(letters[0] for letters in same)
