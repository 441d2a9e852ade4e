"""tiered-ImageNet: the files of Ren et al., or folders of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Layout, Listing, Request, places, split_file
from metasparse_ext.data.npz import read_array
from metasparse_ext.data.picture import Picture, array_picture, encoded_picture
from metasparse_ext.data.readers.folder import class_folders, split_folders
from metasparse_ext.data.unpickle import image_array, read_dict, read_pickle, text

_INSIDE = ("tiered-imagenet", "tiered_imagenet", "tieredImageNet")


def _of_files(
    pattern: str, pictures: Callable[[Path, str], Sequence[Picture]]
) -> Callable[[Request], Listing | None]:
    """A reader of a file of images and ``SPLIT_labels.pkl`` beside it."""

    def find(request: Request) -> Listing | None:
        for place in places(request.root, *_INSIDE):
            images = split_file(place, request.split, pattern)
            labels = split_file(place, request.split, "{}_labels.pkl")
            if images is not None and labels is not None:
                return Listing(
                    name=request.name,
                    split=request.split,
                    files=[images, labels],
                    classes=partial(_grouped, pictures, images, labels, request.name),
                )
        return None

    return find


def _grouped(
    read: Callable[[Path, str], Sequence[Picture]], images: Path, path: Path, owner: str
) -> dict[str, list[Picture]]:
    pictures = read(images, owner)
    labels, names = read_dict(path, owner, "label_specific", "label_specific_str")
    labels = np.asarray(labels)
    fits = labels.shape == (len(pictures),) and labels.dtype.kind in "iu" and labels.size
    if not fits or labels.min() < 0 or labels.max() >= len(names):
        raise DataError(
            f"{owner}: {path}: expected label_specific to be {len(pictures)} integers from 0 to "
            f"{len(names) - 1}, got {labels!r:.120}"
        )
    found: dict[str, list[Picture]] = {}
    for label, each in zip(labels.tolist(), pictures, strict=True):
        found.setdefault(text(names[label]), []).append(each)
    return found


def _encoded(path: Path, owner: str) -> list[Picture]:
    """A list of PNG files, each as an array of its bytes."""
    files = read_pickle(path, owner)
    if not isinstance(files, list):
        raise DataError(f"{owner}: {path}: expected a list of PNG files, got {type(files)}")
    for row, file in enumerate(files):
        if not isinstance(file, (bytes, np.ndarray)):
            raise DataError(f"{owner}: {path}, row {row}: expected a PNG file, got {type(file)}")
    return [encoded_picture(f"{path}, row {row}", file) for row, file in enumerate(files)]


def _arrays(path: Path, owner: str) -> list[Picture]:
    """One array of images, as OpenCV reads them: blue comes first."""
    images = image_array(read_array(path, owner, "images"), path, owner)
    if images.ndim == 4:
        images = images[..., ::-1]
    return [array_picture(f"{path}, row {row}", image) for row, image in enumerate(images)]


LAYOUTS = (
    Layout("SPLIT_images_png.pkl and SPLIT_labels.pkl", _of_files("{}_images_png.pkl", _encoded)),
    Layout("SPLIT_images.npz and SPLIT_labels.pkl", _of_files("{}_images.npz", _arrays)),
    split_folders("folders SPLIT/CLASS", "tiered-imagenet", *_INSIDE),
    class_folders("folders CLASS", "tiered-imagenet", *_INSIDE, "train"),
)
