"""mini-ImageNet: pickles of Ren et al., or images with the split of Ravi and Larochelle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Layout, Listing, Request, places, split_file
from metasparse_ext.data.picture import Picture, array_picture, file_picture
from metasparse_ext.data.readers.folder import class_folders, require_all, split_folders
from metasparse_ext.data.splits import read_csv, split_list
from metasparse_ext.data.unpickle import image_array, read_dict, text
from metasparse_ext.data.walk import image_files

_INSIDE = ("mini-imagenet", "mini_imagenet", "miniImagenet", "miniImageNet")
_IMAGES = ("images", "image")
_TABLES = ("split", "splits")
_ID_LENGTH = len("n01532829")


def _pickles(request: Request) -> Listing | None:
    for place in places(request.root, *_INSIDE):
        path = split_file(place, request.split, "mini-imagenet-cache-{}.pkl")
        if path is not None:
            return Listing(
                name=request.name,
                split=request.split,
                files=[path],
                classes=partial(_unpickled, path, request.name),
            )
    return None


def _unpickled(path: Path, owner: str) -> dict[str, list[Picture]]:
    data, classes = read_dict(path, owner, "image_data", "class_dict")
    images = image_array(data, path, owner)
    if not isinstance(classes, Mapping):
        raise DataError(f"{owner}: {path}: expected class_dict to be a dict, got {type(classes)}")
    found: dict[str, list[Picture]] = {}
    for name, rows in classes.items():
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not _within(rows, len(images)):
            raise DataError(
                f"{owner}: {path}: expected the rows of class {text(name)!r} to be integers from "
                f"0 to {len(images) - 1}, got {rows!r:.120}"
            )
        found[text(name)] = [array_picture(f"{path}, row {row}", images[row]) for row in rows]
    return found


def _within(rows: np.ndarray, count: int) -> bool:
    return bool(rows.size and rows.min() >= 0 and rows.max() < count)


def _tables(request: Request) -> Listing | None:
    """``SPLIT.csv`` of Ravi and Larochelle, and the images it names in one folder."""
    for place in places(request.root, *_INSIDE):
        images = next((place / name for name in _IMAGES if (place / name).is_dir()), None)
        for folder in places(place, *_TABLES):
            table = split_file(folder, request.split, "{}.csv")
            if table is not None and images is not None:
                return _listed_by_table(request, table, images)
    return None


def _listed_by_table(request: Request, table: Path, images: Path) -> Listing:
    paths: dict[str, list[Path]] = {}
    for file, label in read_csv(table):
        paths.setdefault(label, []).append(images / file)
    every = [path for group in paths.values() for path in group]
    if missing := [path for path in every if not path.is_file()]:
        raise DataError(
            f"{request.name}: {len(missing)} of {len(every)} images that {table} names are not in "
            f"{images}, such as {missing[0].name}"
        )
    return Listing(
        name=request.name,
        split=request.split,
        files=[table, *every],
        classes=lambda: {name: list(map(file_picture, group)) for name, group in paths.items()},
    )


def _names(request: Request) -> Listing | None:
    """One folder of images whose names begin with their class: ``n0153282900000005.jpg``."""
    lists = split_list(request, "mini-imagenet")
    wanted: dict[str, list[Path]] = {name: [] for name in sorted(lists.of(request.split))}
    for place in places(request.root, *_INSIDE):
        for folder in (place / name for name in _IMAGES):
            if not folder.is_dir():
                continue
            images, strays = image_files(folder, request.name)
            for path in images.get(".", ()):
                if path.name[:_ID_LENGTH] in wanted:
                    wanted[path.name[:_ID_LENGTH]].append(path)
            if not any(wanted.values()):
                return None
            missing = [name for name, paths in wanted.items() if not paths]
            require_all(request, missing, lists, str(folder))
            return Listing(
                name=request.name,
                split=request.split,
                files=[path for paths in wanted.values() for path in paths],
                classes=lambda: {n: list(map(file_picture, p)) for n, p in wanted.items()},
                choice="\n".join(wanted),
                strays=strays,
            )
    return None


LAYOUTS = (
    Layout("mini-imagenet-cache-SPLIT.pkl", _pickles),
    Layout("SPLIT.csv and the folder images", _tables),
    Layout("the folder images of files named CLASS...", _names, takes=("splits",)),
    split_folders("folders SPLIT/CLASS", "mini-imagenet", *_INSIDE),
    class_folders("folders CLASS", "mini-imagenet", *_INSIDE),
)
