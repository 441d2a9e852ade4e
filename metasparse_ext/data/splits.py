"""Which class is in which split: published lists, which ship, and lists of the user's own."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from metasparse_ext._arguments import require_type
from metasparse_ext._json import parse
from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.listing import SPLIT_NAMES, Request, split_file

_FORMS = "FILE.json, FILE.csv, FILE.txt, or a folder of SPLIT.txt or SPLIT.csv"
# Of several lists of a data set, the one that is taken unless another is named.
_DEFAULTS = {"omniglot": "vinyals", "cub": "chen"}
_OF_NAME = {name: split for split, names in SPLIT_NAMES.items() for name in names}


@dataclass(frozen=True)
class SplitList:
    """The classes of each split.

    Attributes:
        name: such as ``"cub/chen"``, or the path of the user's file.
        source: where the list is from.
        classes: the names of the classes by split.
        path: the user's file, or None.
    """

    name: str
    source: str
    classes: Mapping[str, tuple[str, ...]]
    path: Path | None = None

    def of(self, split: str) -> tuple[str, ...]:
        """The classes of one split.

        Raises:
            DataError: the list has no such split.
        """
        if not self.classes.get(split):
            there = ", ".join(name for name, classes in self.classes.items() if classes)
            raise DataError(f"{self.name}: no class in split {split!r}; splits there: {there}")
        return self.classes[split]


def published(dataset: str) -> tuple[str, ...]:
    """The names of the lists that ship for a data set, such as ``"cub"``, the default first."""
    require_type("published", "dataset", dataset, str, "the name of a data set")
    folder = files("metasparse_ext.data") / "split_lists"
    names = [
        file.name.removeprefix(f"{dataset}.").removesuffix(".json")
        for file in folder.iterdir()
        if file.name.startswith(f"{dataset}.")
    ]
    return tuple(sorted(names, key=lambda name: (name != _DEFAULTS.get(dataset), name)))


def split_list(request: Request, dataset: str | None = None) -> SplitList:
    """The list that the request names: a published one, by default, or the user's own.

    Args:
        request: its ``splits`` is None, the name of a published list, or a path.
        dataset: whose published lists to choose from; None if there are none.

    Raises:
        DataError: no such list, or a file that is not of the format (see docs/data.md).
    """
    chosen = request.options.splits
    shipped = published(dataset) if dataset else ()
    if chosen is None:
        if not shipped:
            raise DataError(
                f"{request.name}: expected splits to be a list of the classes of each split "
                f"({_FORMS}), got None"
            )
        return _published(f"{dataset}.{shipped[0]}")
    if chosen in shipped:
        return _published(f"{dataset}.{chosen}")
    path = Path(chosen).expanduser()
    if not path.exists():
        known = f"one of {', '.join(shipped)}, or " if shipped else ""
        raise DataNotFoundError(
            f"{request.name}: expected splits to be {known}{_FORMS}, got {os.fspath(chosen)!r}, "
            "which is not there"
        )
    return read_split_list(path, allow_overlap=request.options.allow_overlap)


@cache
def _published(name: str) -> SplitList:
    text = (files("metasparse_ext.data") / "split_lists" / f"{name}.json").read_text("utf-8")
    said = parse(text)
    source = said.pop("source")
    return SplitList(
        name.replace(".", "/", 1), source, {split: tuple(c) for split, c in said.items()}
    )


def read_split_list(path: Path, *, allow_overlap: bool = False) -> SplitList:
    """Reads a list of the user's own.

    Args:
        path: a ``.json`` object of a list of class names by split, and ``source`` if one likes; a
            ``.csv`` file with the columns ``class`` (or ``label``) and ``split``; a ``.txt`` file
            of lines ``SPLIT CLASS``; or a folder of ``train.txt``, ``val.txt`` and ``test.txt``
            with a class a line, or of ``train.csv`` and so on with a column ``label``. Empty lines
            and those of ``.txt`` files that begin with ``#`` are not read.
        allow_overlap: whether a class may be in two splits.

    Raises:
        DataError: another format, a split of another name, or a class in two splits.
    """
    try:
        pairs, source = _pairs(path)
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"splits: cannot read {path}: {error}") from error
    classes: dict[str, dict[str, None]] = {split: {} for split in SPLIT_NAMES}
    for split, name in pairs:
        if split not in _OF_NAME:
            raise DataError(
                f"splits: {path}: expected splits of the names {', '.join(SPLIT_NAMES)}, "
                f"got {split!r}"
            )
        classes[_OF_NAME[split]][name] = None
    if not any(classes.values()):
        raise DataError(f"splits: {path}: expected classes, got none; it may be {_FORMS}")
    if not allow_overlap:
        _require_disjoint(path, classes)
    return SplitList(str(path), source, {s: tuple(c) for s, c in classes.items()}, path)


def _pairs(path: Path) -> tuple[list[tuple[str, str]], str]:
    """(split, class) of every entry, and the source."""
    if path.is_dir():
        return _pairs_of_folder(path), str(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _pairs_of_json(path)
    text = path.read_text("utf-8-sig")
    if suffix == ".csv":
        rows = csv.DictReader(text.splitlines())
        names, splits = _column(path, rows, "class", "label"), _column(path, rows, "split")
        return _both(path, rows, splits, names), str(path)
    if suffix == ".txt":
        lines = [line.split(None, 1) for line in _lines(text)]
        for line in lines:
            if len(line) != 2:
                raise DataError(f"splits: {path}: expected lines SPLIT CLASS, got {line[0]!r}")
        return [(split, name) for split, name in lines], str(path)
    raise DataError(f"splits: expected {_FORMS}, got {path}")


def _pairs_of_folder(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for split in SPLIT_NAMES:
        if (lines := split_file(path, split, "{}.txt")) is not None:
            pairs += [(split, name) for name in _lines(lines.read_text("utf-8-sig"))]
        elif (table := split_file(path, split, "{}.csv")) is not None:
            pairs += [(split, label) for _, label in read_csv(table)]
    return pairs


def _pairs_of_json(path: Path) -> tuple[list[tuple[str, str]], str]:
    said = parse(path.read_text("utf-8-sig"))
    if not isinstance(said, dict):
        raise DataError(f"splits: {path}: expected a JSON object, got {type(said).__name__}")
    source = str(said.pop("source", path))
    for split, names in said.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"splits: {path}: expected the classes of {split!r} to be a list of texts, "
                f"got {names!r:.120}"
            )
    return [(split, name) for split, names in said.items() for name in names], source


def read_csv(path: Path) -> list[tuple[str, str]]:
    """(filename, label) of every row of a table with such columns, in any order.

    Raises:
        DataError: a column is missing, or a row is short.
    """
    try:
        rows = csv.DictReader(path.read_text("utf-8-sig").splitlines(), skipinitialspace=True)
        names = _column(path, rows, "filename", "image_name", "image")
        labels = _column(path, rows, "label", "class_name", "class")
        return _both(path, rows, names, labels)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"splits: cannot read {path}: {error}") from error


def _both(path: Path, rows: csv.DictReader, *names: str) -> list[tuple[str, str]]:
    """What two columns hold, row by row; a short row has None for the columns that it lacks."""
    pairs = []
    for row in rows:
        one, other = ((row[name] or "").strip() for name in names)
        if not (one and other):
            wanted = " and ".join(map(repr, names))
            raise DataError(f"splits: {path}, line {rows.line_num}: expected {wanted}, got less")
        pairs.append((one, other))
    return pairs


def _column(path: Path, rows: csv.DictReader[str], *names: str) -> str:
    there = rows.fieldnames or ()
    for name in names:
        if name in there:
            return name
    raise DataError(f"splits: {path}: expected a column {names[0]!r}, got {list(there)!r:.120}")


def _lines(text: str) -> Iterable[str]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def _require_disjoint(path: Path, classes: Mapping[str, Mapping[str, None]]) -> None:
    seen: dict[str, str] = {}
    for split, names in classes.items():
        for name in names:
            if (other := seen.setdefault(name, split)) != split:
                raise DataError(
                    f"splits: {path}: class {name!r} is in {other!r} and {split!r}; "
                    "allow_overlap=True takes it so"
                )
