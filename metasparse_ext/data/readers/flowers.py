"""VGG Flowers-102: the folder ``jpg`` and ``imagelabels.mat``, which SciPy reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Layout, Listing, Request, places
from metasparse_ext.data.picture import Picture, file_picture
from metasparse_ext.data.readers.folder import require_all
from metasparse_ext.data.splits import split_list


def _labelled(request: Request) -> Listing | None:
    for place in places(request.root, "flowers", "flowers-102", "102flowers", "vgg-flowers"):
        labels = place / "imagelabels.mat"
        if labels.is_file() and (place / "jpg").is_dir():
            return _of_folder(request, place, labels)
    return None


def _of_folder(request: Request, place: Path, labels: Path) -> Listing:
    lists = split_list(request, "flowers")
    numbers = {_number(name, lists.name): name for name in lists.of(request.split)}
    paths: dict[str, list[Path]] = {name: [] for name in sorted(numbers.values())}
    for index, label in enumerate(_read_labels(labels, request.name), 1):
        if label in numbers:
            paths[numbers[label]].append(place / "jpg" / f"image_{index:05}.jpg")
    missing = [name for name, group in paths.items() if not group]
    require_all(request, missing, lists, str(labels))

    def classes() -> dict[str, list[Picture]]:
        return {name: list(map(file_picture, group)) for name, group in paths.items()}

    return Listing(
        name=request.name,
        split=request.split,
        files=[labels, *(path for group in paths.values() for path in group)],
        classes=classes,
        choice="\n".join(paths),
    )


def _number(name: str, where: str) -> int:
    """The number of a class: lists name it ``001.pink primrose``."""
    number = name.partition(".")[0]
    if not number.isdecimal():
        raise DataError(f"{where}: expected classes of the form NNN.NAME, got {name!r}")
    return int(number)


def _read_labels(path: Path, owner: str) -> list[int]:
    """The number of the class of each image, in the order of the images' names."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{owner}: {path} needs SciPy: pip install scipy") from error
    try:
        labels = np.asarray(loadmat(path)["labels"]).ravel()
    except Exception as error:  # SciPy names no kinds of errors for damaged files.
        raise DataError(f"{owner}: cannot read labels of {path}: {error}") from error
    if labels.dtype.kind not in "iu":
        raise DataError(f"{owner}: {path}: expected labels to be integers, got {labels.dtype}")
    return labels.tolist()


LAYOUTS = (Layout("the folder jpg and imagelabels.mat", _labelled, takes=("splits",)),)
