"""What meta-steps measured: sums that processes can share, the file of records, and who is told.

The file has JSON lines: one object a line, appended as it happens.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from metasparse_ext import _atomic as atomic
from metasparse_ext._json import parse
from metasparse_ext._records import check_record
from metasparse_ext.algorithms.records import Metrics
from metasparse_ext.training.checkpoint import CheckpointError
from metasparse_ext.training.config import RunConfig
from metasparse_ext.training.measure import ACCURACY, Measure

logger = logging.getLogger("metasparse_ext")


def totals(
    metrics: Metrics,
    distribution: Tensor | None = None,
    names: Sequence[str] = (),
    *,
    measure: Measure = ACCURACY,
) -> dict[str, Tensor]:
    """Sum over the tasks and number of tasks, float64 (2,), of every metric.

    Args:
        metrics: A value per task.
        distribution: (T,) the data set of each task, where there are several.
        names: Their names; ``accuracy/NAME`` is the accuracy on the tasks of one of them.
        measure: What stands in place of the accuracy; tasks without a value are left out of it.
    """
    values = {**vars(metrics), "accuracy": measure.values(metrics)}
    scores = values["accuracy"]
    scored = measure.scored(scores)
    renamed = {measure.name if n == "accuracy" else n: value for n, value in values.items()}
    sums = {name: total(value) for name, value in renamed.items()}
    sums[measure.name] = total(scores, where=scored)
    for number, name in enumerate(names):
        where = scored & (distribution == number)
        sums[f"{measure.name}/{name}"] = total(scores, where=where)
    return sums


def total(values: Tensor, where: Tensor | None = None) -> Tensor:
    """Sum and number of some values, float64 (2,); nothing is read on the host."""
    values = values.double()
    if where is None:
        where = torch.ones_like(values, dtype=torch.bool)
    # Not a product: what is left out may be no number.
    return torch.stack([torch.where(where, values, 0.0).sum(), where.double().sum()])


def means(sums: dict[str, Tensor]) -> dict[str, float]:
    """The mean of every metric that has a value, by one look at the device."""
    totals, counts = torch.stack(list(sums.values())).unbind(1)
    found = dict(zip(sums, (totals / counts).tolist(), strict=True))
    return {name: value for name, value in found.items() if value == value}


@runtime_checkable
class Reporter(Protocol):
    """Is told what happens during training; a method ``close``, if it has one, is called last."""

    def start(self, config: RunConfig, iteration: int) -> None:
        """Training begins after ``iteration`` iterations."""

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """A training record was written; a fraction of the whole training is done."""

    def validation(self, record: Mapping[str, Any], best: bool) -> None:
        """A validation record was written; ``best`` if its checkpoint is the best so far."""


class MetricsFile:
    """Appends records to a file."""

    def __init__(self, path: Path) -> None:
        self._file = atomic.Appender(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record.

        Raises:
            ValueError: If a number is not finite: JSON has no such number.
        """
        self._file.append(json.dumps(record, allow_nan=False))

    def flush(self) -> None:
        """Waits until all records are on the disk."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a file; a last line cut short by a crash is left out, with a warning.

    Raises:
        CheckpointError: If the file is missing, or another line is no JSON object; it is named.
    """
    return [_record(path, number, line) for number, line in enumerate(_lines(path), 1)]


def to_csv(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The records of runs, by the label of the run, as one table in CSV.

    Its columns are the label as ``run`` and every name that a record has, those of nested values as
    ``OUTER/INNER``; what a record has not is empty.
    """
    rows = [{"run": label, **flat(each)} for label, found in records.items() for each in found]
    columns = dict.fromkeys(name for row in rows for name in row) or {"run": None}
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their names, nested ones by ``OUTER/INNER``."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found[prefix + name] = value
    return found


def truncate(path: Path, records: int) -> None:
    """Drops what was written after so many records, so that a resumed run writes it again.

    Raises:
        CheckpointError: If one of them is missing or damaged.
    """
    if records == 0:
        atomic.remove(path)
        return
    lines = _lines(path)
    if len(lines) < records:
        raise CheckpointError(
            f"{path}: expected the {records} records that the checkpoint was written after, "
            f"got {len(lines)}"
        )
    for number, line in enumerate(lines[:records], 1):
        _record(path, number, line)
    atomic.replace(path, b"".join(lines[:records]))


def _lines(path: Path) -> list[bytes]:
    """The whole lines of a file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file of metrics")
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        logger.warning("%s, line %d: cut short, and left out", path, len(lines))
        del lines[-1]
    return lines


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = parse(line)
    except ValueError as error:
        raise CheckpointError(f"{path}, line {number}: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}, line {number}: expected a JSON object, got {line[:40]!r}")
    try:
        check_record("a record", record)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}, line {number}: {error}") from error
    return record
