"""Evaluations of runs as their folders keep them: written, found and read."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metasparse_ext import _atomic as atomic
from metasparse_ext._arguments import require
from metasparse_ext._json import parse
from metasparse_ext._records import check_fields
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.run import Run
from metasparse_ext.training.scores import LATER, Evaluation
from metasparse_ext.training.setting import Setting

# A list of numbers in indented JSON, a line each.
_NUMBERS = re.compile(r"\[\n((?:[-+.,\deE\s]|null)+)\]")


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation of a run, as kept in its folder.

    Attributes:
        setting: Data set, split and kind of task, in words.
        name: The split, and what differs from the run's own setting: what its files are called.
        drawn: How the tasks were drawn, ``data``, ``split``, ``ways``, ``shots``, ``queries`` and
            ``every_set``; less or nothing in files of earlier versions.
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
        """The accuracy, or what takes its place; NaN where it has no finite value."""
        found = self.numbers[self.measure]
        return math.nan if found is None else found


def keep(run: Run, evaluation: RunEvaluation, found: Evaluation) -> None:
    """Writes an evaluation to the run folder, in files of its name.

    Raises:
        OSError: If it cannot be written.
    """
    arrays = {name: values.numpy() for name, values in found.usage.items()}
    atomic.replace(run.usage_path(evaluation.name), npz(arrays))
    atomic.replace_text(run.evaluation_path(evaluation.name), to_json(vars(evaluation)) + "\n")


def to_json(value: Any) -> str:
    """Indented JSON, with a list of numbers in a line."""
    return _NUMBERS.sub(_in_a_line, json.dumps(value, indent=2))


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
        fields: dict[str, Any] = {"name": name, **parse(path.read_bytes())}
        return RunEvaluation(**fields)


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
        if evaluation is None or adapt_steps not in (None, evaluation.adapt_steps):
            continue
        # A run that went on may have another number of tasks for its own.
        if wanted.every_set or evaluation.numbers["tasks"] == wanted.tasks:
            return evaluation
    return None


def require_present(run: Run, evaluation: RunEvaluation, remedy: str) -> None:
    """Refuses an evaluation of another checkpoint than the run's best one is now.

    Raises:
        CheckpointError: If it is one, or the checkpoint is damaged; without a checkpoint nothing.
    """
    if not (run.has_best or run.started):
        return
    now = run.best().iteration
    if evaluation.iteration != now:
        raise CheckpointError(
            f"{run}: its evaluation is of iteration {evaluation.iteration}, and its best "
            f"checkpoint of iteration {now}; {remedy}"
        )


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
def _reading(path: Path, what: str) -> Generator[None]:
    try:
        yield
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: not a whole file of {what} ({reason})") from error


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of an ``.npz`` file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
