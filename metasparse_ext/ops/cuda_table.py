"""The table that chooses a CUDA backend: rows of conditions, read from cuda_table.json.

A row holds for a call when each of its conditions does: a feature of the call (a size, the dtype,
the precision of products) lies in a range or equals a word. The first row that holds, and whose
backend can serve the call, decides; a call that no row wants goes to PyTorch's own operators.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Features = Mapping[str, int | str]

PATH = Path(__file__).with_name("cuda_table.json")

#: A measurement speaks for sizes within this factor of its own.
REACH = math.sqrt(2)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        ops: Names the row is for.
        when: Feature -> [least, most] (None: no bound) or a word.
        backend: "dense", "triton" or "cuda".
        options: What the backend is told: the cut of a Triton kernel.
    """

    ops: tuple[str, ...]
    when: Mapping[str, str | Sequence[int | None]]
    backend: str
    options: Mapping[str, int]

    def holds(self, op: str, features: Features) -> bool:
        """Whether this row speaks for a call; one on a feature the call lacks does not."""
        return op in self.ops and all(
            name in features and _meets(features[name], wanted)
            for name, wanted in self.when.items()
        )


class Table(NamedTuple):
    """Rows, and where they come from: "modelled", or "measured" on a device."""

    status: str
    device: str | None
    rows: tuple[Row, ...]


def _meets(value: int | str, wanted: str | Sequence[int | None]) -> bool:
    if isinstance(wanted, str) or isinstance(value, str):
        return value == wanted
    least, most = wanted
    return (least is None or value >= least) and (most is None or value <= most)


def read(path: Path = PATH) -> Table:
    """The table in a file."""
    record = json.loads(path.read_text())
    rows = [
        Row(tuple(r["ops"]), r.get("when", {}), r["backend"], r.get("options", {}))
        for r in record["rows"]
    ]
    return Table(record["status"], record["device"], tuple(rows))


@functools.cache
def table() -> Table:
    """The table in use."""
    return read()


@functools.lru_cache(maxsize=4096)
def rows_for(op: str, features: tuple[tuple[str, int | str], ...]) -> tuple[Row, ...]:
    """The rows that hold for a call, given its features as items."""
    return tuple(row for row in table().rows if row.holds(op, dict(features)))


def measured(op: str, features: Features, backend: str, options: Mapping[str, int]) -> Row:
    """The row that a measurement becomes: this backend won for a call with these features."""
    when: dict[str, str | list[int | None]] = {
        name: value
        if isinstance(value, str)
        else [math.ceil(value / REACH), math.floor(value * REACH)]
        for name, value in features.items()
    }
    return Row((op,), when, backend, options)


def write(rows: Iterable[Row], device: str, path: Path, base: Path = PATH) -> None:
    """Writes a table: measured rows before those of ``base``, in place of earlier measurements.

    The rows of the model stay behind them, for calls that no measurement speaks for.
    """
    earlier = json.loads(base.read_text())["rows"]
    modelled = [row for row in earlier if not row.get("measured")]
    new = [{**row._asdict(), "measured": True} for row in rows]
    record = {"status": "measured", "device": device}
    lines = ",\n  ".join(json.dumps(row) for row in [*new, *modelled])
    head = json.dumps(record, indent=1)[:-2]
    path.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')
