"""CIFAR-FS and FC100: pickles, folders of images, or CIFAR-100's own archive."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Layout, Listing, Request, places, split_file
from metasparse_ext.data.picture import Picture, array_picture
from metasparse_ext.data.readers.folder import class_folders, require_all, split_folders
from metasparse_ext.data.splits import split_list
from metasparse_ext.data.unpickle import image_array, read_dict, text

_ARCHIVE = "cifar-100-python"
_SIDE = 32


def _pickles(pattern: str, *inside: str) -> Callable[[Request], Listing | None]:
    def find(request: Request) -> Listing | None:
        for place in places(request.root, *inside):
            path = split_file(place, request.split, pattern)
            if path is not None:
                return Listing(
                    name=request.name,
                    split=request.split,
                    files=[path],
                    classes=partial(_unpickled, path, request),
                )
        return None

    return find


def _unpickled(path: Path, request: Request) -> dict[str, list[Picture]]:
    """Images and numbers: the file has no names, and its numbers may start anew in each split."""
    data, labels = read_dict(path, request.name, "data", "labels")
    images, labels = image_array(data, path, request.name), np.asarray(labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{request.name}: {path}: expected labels to be {len(images)} integers, "
            f"got {labels!r:.120}"
        )
    found: dict[str, list[Picture]] = {}
    for row, label in enumerate(labels.tolist()):
        each = array_picture(f"{path}, row {row}", images[row])
        found.setdefault(f"{request.split}-{label:03}", []).append(each)
    return found


def _archive(dataset: str) -> Callable[[Request], Listing | None]:
    """A reader of the files ``train``, ``test`` and ``meta``, in a folder or its ``.tar.gz``."""

    def find(request: Request) -> Listing | None:
        for place in places(request.root, _ARCHIVE):
            files = [place / name for name in ("train", "test", "meta")]
            if all(file.is_file() for file in files):
                return _of_archive(request, dataset, place, files)
        packed = request.root / f"{_ARCHIVE}.tar.gz"
        if packed.is_file():
            return _of_archive(request, dataset, packed, [packed])
        return None

    return find


def _of_archive(request: Request, dataset: str, place: Path, files: list[Path]) -> Listing:
    lists = split_list(request, dataset)
    return Listing(
        name=request.name,
        split=request.split,
        files=files if lists.path is None else [*files, lists.path],
        classes=lambda: _from_archive(request, dataset, place),
        choice="\n".join(lists.of(request.split)),
    )


def _from_archive(request: Request, dataset: str, place: Path) -> dict[str, list[Picture]]:
    """All 600 images of a class: those of ``train``, then those of ``test``."""
    lists = split_list(request, dataset)
    wanted: dict[str, list[Picture]] = {name: [] for name in sorted(lists.of(request.split))}
    with _members(place, request.name) as held:
        (names,) = held("meta", "fine_label_names")
        for part in ("train", "test"):
            rows, labels = held(part, "data", "fine_labels")
            images = _images(rows, labels, len(names), place, request.name)
            for row, label in enumerate(labels):
                if (name := text(names[label])) in wanted:
                    where = f"{place}/{part}, row {row}"
                    wanted[name].append(array_picture(where, images[row]))
    missing = [name for name, pictures in wanted.items() if not pictures]
    require_all(request, missing, lists, str(place))
    return wanted


def _images(rows: Any, labels: Any, classes: int, place: Path, owner: str) -> np.ndarray:
    """Rows of red, green and blue planes as images (n, 32, 32, 3)."""
    fits = (
        isinstance(rows, np.ndarray)
        and rows.dtype == np.uint8
        and rows.shape == (len(labels), 3 * _SIDE**2)
        and all(isinstance(label, int) and 0 <= label < classes for label in labels)
    )
    if not fits:
        raise DataError(
            f"{owner}: {place}: expected data to be uint8 of shape (n, {3 * _SIDE**2}) and as many "
            f"fine_labels from 0 to {classes - 1}, got {rows!r:.80} and {labels!r:.80}"
        )
    return rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)


@contextmanager
def _members(place: Path, owner: str) -> Generator[Callable[..., list[Any]]]:
    """Gives values of the pickles in the folder, or in the packed one, without unpacking it."""
    if place.is_dir():
        yield lambda name, *keys: read_dict(place / name, owner, *keys)
        return
    try:
        with tarfile.open(place) as archive:
            yield lambda name, *keys: read_dict(
                place, owner, *keys, file=_member(archive, f"{_ARCHIVE}/{name}")
            )
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{owner}: cannot read {place}: {error}") from error


def _member(archive: tarfile.TarFile, name: str) -> BinaryIO:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file  # type: ignore[return-value]


def _layouts(dataset: str, pattern: str, *inside: str) -> tuple[Layout, ...]:
    archive = f"the folder {_ARCHIVE} or its .tar.gz"
    return (
        Layout(pattern.format("SPLIT"), _pickles(pattern, *inside)),
        Layout(archive, _archive(dataset), takes=("splits",)),
        split_folders("folders SPLIT/CLASS", dataset, *inside),
        class_folders("folders CLASS", dataset, *inside, "data", "cifar100/data"),
    )


CIFAR_FS = _layouts("cifar-fs", "CIFAR_FS_{}.pickle", "cifar-fs", "CIFAR-FS", "cifarfs")
FC100 = _layouts("fc100", "FC100_{}.pickle", "fc100", "FC100")
