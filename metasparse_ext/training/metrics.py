"""Metrics as JSON lines: one object a line, appended as it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metasparse_ext.training import atomic


class MetricsFile:
    """Appends records to a file; a line is on its way to the disk as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record."""
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a file; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        records.append(json.loads(line))
    return records


def truncate(path: Path, iteration: int) -> None:
    """Drops what was written after ``iteration``, so that a resumed run writes it again."""
    if not path.exists():
        return
    kept = [record for record in read(path) if record["iteration"] <= iteration]
    atomic.replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
