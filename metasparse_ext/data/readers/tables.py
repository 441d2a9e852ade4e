"""Plain text tables beside images: values with spaces between, a row a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metasparse_ext.data.errors import DataError


def rows(path: Path, owner: str, *kinds: Callable[[str], Any]) -> list[tuple[Any, ...]]:
    """The values of every line; the last one takes the rest of its line, spaces and all.

    Args:
        path: the table.
        owner: the data set, for messages.
        kinds: what makes each value of its text, such as ``int``.

    Raises:
        DataError: the file cannot be read, or a line is not of this form.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{owner}: cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.strip().split(None, len(kinds) - 1)
        try:
            found.append(tuple(kind(part) for kind, part in zip(kinds, parts, strict=True)))
        except ValueError as error:
            raise DataError(
                f"{owner}: {path}, line {number}: expected {len(kinds)} values "
                f"({', '.join(kind.__name__ for kind in kinds)}), got {line.strip()[:80]!r}"
            ) from error
    return found
