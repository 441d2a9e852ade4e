"""Image sets kept as ``.npz`` files, each with any part of the images.

A file has ``images`` uint8 (n, H, W) or (n, H, W, 3), ``labels`` (n,) integers that index
``class_names`` (classes,), and ``split`` (classes,): the split of each class.
"""

from __future__ import annotations

import lzma
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import ImageClasses, duplicate
from metasparse_ext.data.listing import Layout, Request
from metasparse_ext.data.options import ReadOptions

_ARRAYS = frozenset({"images", "labels", "class_names", "split"})
# Characters of what numpy says of a damaged file: it quotes the whole header of an array.
_LONGEST_REASON = 200
# What numpy and zipfile raise for damaged, encrypted and unknown content.
_UNREADABLE = (
    *(OSError, ValueError, EOFError, SyntaxError, RuntimeError, TypeError, OverflowError),
    *(MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    struct.error,
)


@dataclass(frozen=True)
class NpzSource:
    """One split of files of this format, as a source."""

    paths: Sequence[Path]
    name: str
    split: str

    def read(self, options: ReadOptions) -> ImageClasses:
        """Reads the files; what the options ask for is done to the result."""
        return read_npz(self.paths, self.name, self.split)


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays of an open file, each read when it is asked for; errors name it and the file."""

    def __init__(self, file: Mapping[str, np.ndarray], path: Path, name: str) -> None:
        self._file, self._path, self._name = file, path, name

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            array = self._file[name]
        except _UNREADABLE as error:
            reason = _reason(error)
            raise DataError(
                f"{self._name}: cannot read array {name} of {self._path}: {reason}"
            ) from error
        if not isinstance(array, np.ndarray):
            raise DataError(f"{self._name}: array {name} of {self._path} is not in the .npy format")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def npz_layout(dataset: str) -> Layout:
    """The layout of files of this format: ``cifar-fs`` is in ``cifar-fs*.npz``, ``cifar_fs*.npz``.

    All files that match are joined.
    """
    pattern = f"{dataset.replace('-', '[-_]')}*.npz"

    def find(request: Request) -> NpzSource | None:
        paths = sorted(request.root.glob(pattern))
        return NpzSource(paths, request.name, request.split) if paths else None

    return Layout(f"{dataset.replace('-', '_')}*.npz", find)


def npz_file(request: Request) -> NpzSource:
    """The file that the request's root is.

    Raises:
        DataNotFoundError: there is no such file.
    """
    if not request.root.exists():
        raise DataNotFoundError(f"{request.name}: no file {request.root}")
    return NpzSource([request.root], request.name, request.split)


def read_array(path: Path, owner: str, name: str) -> np.ndarray:
    """One array of an ``.npz`` file of any format.

    Raises:
        DataError: the file is damaged, or has no such array.
    """
    with _opened(path, owner, frozenset({name})) as arrays:
        return arrays[name]


def read_npz(paths: Sequence[Path], name: str, split: str) -> ImageClasses:
    """Reads one split, joining the files; images of one class may be in several of them.

    Args:
        paths: the files.
        name: the data set, for messages and for the result.
        split: the split to read.

    Returns:
        The classes of the split in the order of their names.

    Raises:
        DataError: a file is damaged or not of this format, files contradict each other, or no
            class belongs to the split.
    """
    class_splits: dict[str, str] = {}
    parts = []
    for path in paths:
        with _opened(path, name) as arrays:
            _merge_splits(class_splits, arrays, f"{name}: {path}")
            parts.append(_rows_of_split(arrays, split, f"{name}: {path}"))
    try:
        return _join(parts, class_splits, name, split)
    except DataError as error:
        raise DataError(f"{error}, in {', '.join(map(str, paths))}") from error


def classes_from_arrays(arrays: Mapping[str, np.ndarray], name: str, split: str) -> ImageClasses:
    """Selects one split of arrays that have the form of a file."""
    class_splits: dict[str, str] = {}
    _merge_splits(class_splits, arrays, name)
    return _join([_rows_of_split(arrays, split, name)], class_splits, name, split)


@contextmanager
def _opened(
    path: Path, name: str, needed: frozenset[str] = _ARRAYS
) -> Generator[Mapping[str, np.ndarray]]:
    """Reads a file; whatever a damaged one makes numpy or zipfile raise becomes a DataError."""
    if not path.is_file():  # To open a pipe would wait for its other end.
        raise DataError(f"{name}: {path} is not a regular file")
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{name}: {path} is not an .npz file, or is cut short")
        with np.load(path, allow_pickle=False) as arrays:
            if missing := needed - arrays.keys():
                raise DataError(f"{name}: {path} lacks the arrays {', '.join(sorted(missing))}")
            yield _Arrays(arrays, path, name)
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{name}: cannot read {path}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    return " ".join(str(error).split())[:_LONGEST_REASON]


def _merge_splits(
    class_splits: dict[str, str], arrays: Mapping[str, np.ndarray], source: str
) -> None:
    names, splits = arrays["class_names"], arrays["split"]
    if names.ndim != 1 or names.shape != splits.shape:
        raise DataError(
            f"{source}: expected class_names and split of one shape (classes,), "
            f"got {names.shape} and {splits.shape}"
        )
    for array_name, array in (("class_names", names), ("split", splits)):
        if array.dtype.kind != "U":
            raise DataError(
                f"{source}: array {array_name}: expected text (NumPy type U), "
                f"got type {str(array.dtype)[:_LONGEST_REASON]}"
            )
        _require_characters(array, f"{source}: array {array_name}")
    if twice := duplicate(names.tolist()):
        raise DataError(f"{source}: class_names: expected different names, got {twice!r} twice")
    for class_name, split in zip(names.tolist(), splits.tolist(), strict=True):
        if (other := class_splits.setdefault(class_name, split)) != split:
            raise DataError(f"{source}: class {class_name!r} is in splits {other!r} and {split!r}")


def _require_characters(text: np.ndarray, source: str) -> None:
    """NumPy takes any number for a character; Python makes no string of some, prints no others."""
    codes = np.ascontiguousarray(text).view(text.dtype.byteorder.replace("|", "=") + "u4")
    surrogates = (codes >= 0xD800) & (codes <= 0xDFFF)
    if (wrong := codes[(codes > sys.maxunicode) | surrogates]).size:
        raise DataError(f"{source}: expected text, got a character of number {wrong[0]}")


def _rows_of_split(
    arrays: Mapping[str, np.ndarray], split: str, source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, labels, class names of the whole file) of the rows whose class is in the split."""
    names, labels = arrays["class_names"], arrays["labels"]
    wanted = arrays["split"] == split
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{source}: expected labels of shape (n,) and an integer type, "
            f"got {labels.shape} and {str(labels.dtype)[:_LONGEST_REASON]}"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= len(names)):
        raise DataError(
            f"{source}: expected labels from 0 to {len(names) - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )
    rows = np.flatnonzero(wanted[labels])
    # Images are read last and only where needed: they are all but the whole of the file.
    if not rows.size:
        return np.empty((0,), np.uint8), labels[rows], names
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
        raise DataError(
            f"{source}: expected images of shape ({len(labels)}, H, W) or "
            f"({len(labels)}, H, W, 3) and type uint8, "
            f"got {images.shape} and {str(images.dtype)[:_LONGEST_REASON]}"
        )
    return images[rows], labels[rows], names


def _join(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    class_splits: Mapping[str, str],
    name: str,
    split: str,
) -> ImageClasses:
    class_names = sorted(key for key, value in class_splits.items() if value == split)
    if not class_names:
        there = ", ".join(sorted(set(class_splits.values()))) or "none"
        raise DataError(f"{name}: no class in split {split!r}; splits there: {there}")
    parts = [part for part in parts if len(part[0])]
    shapes = sorted({images.shape[1:] for images, _, _ in parts})
    if len(shapes) > 1:
        raise DataError(f"{name}: files have images of different shapes: {shapes}")
    if not parts:
        raise DataError(f"{name}/{split}: class {class_names[0]!r} has no images")
    index = {class_name: position for position, class_name in enumerate(class_names)}
    labels = [
        np.array([index.get(class_name, -1) for class_name in names.tolist()])[rows]
        for _, rows, names in parts
    ]
    return ImageClasses.from_labels(
        np.concatenate([images for images, _, _ in parts]),
        np.concatenate(labels),
        class_names,
        name=name,
        split=split,
    )
