"""Image sets kept as a folder of images per class: ``root/train/CLASS/*.png`` and so on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import ImageClasses, check_image_size, require_memory

_SPLITS = ("train", "val", "test")
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


def read_folder(root: Path, split: str, image_size: int | None = None) -> ImageClasses:
    """Reads the images of one split into memory.

    Every folder below ``root/split`` that holds images itself is a class, named by its path from
    there (``Greek/alpha``); classes and images come in the order of their names. Images are grey
    if all of them are, else RGB; transparency is dropped.

    Args:
        root: the folder of the splits; its name becomes the name of the data set.
        split: the folder to read.
        image_size: side to which images are resized as they are read (see
            ``ImageClasses.resized``). Needed when they differ in size.

    Raises:
        DataNotFoundError: no such folder, or no images in it.
        DataError: an image cannot be read, sizes differ and ``image_size`` is not given, or
            a class of the split is in another of ``train``, ``val`` and ``test`` too.
    """
    if image_size is not None:
        check_image_size(image_size)
    folder = root / split
    if not folder.is_dir():
        there = sorted(path.name for path in root.glob("*/"))
        raise DataNotFoundError(
            f"folder: no folder {folder}; folders in {root}: {', '.join(there) or 'none'}"
        )
    class_names, labels, pictures = [], [], []
    classes = _classes(folder)
    _require_disjoint(root, split, {name for name, _ in classes})
    if image_size is not None:
        count = sum(len(paths) for _, paths in classes)
        require_memory(f"folder {folder}", (count, 1, image_size, image_size))
    for label, (class_name, paths) in enumerate(classes):
        class_names.append(class_name)
        for path in paths:
            labels.append(label)
            pictures.append(_read(path, image_size))
    if not pictures:
        raise DataNotFoundError(
            f"folder: no images {folder}/CLASS/*, with a suffix of {', '.join(sorted(_SUFFIXES))}"
        )
    return ImageClasses.from_labels(
        _stack(pictures, folder),
        np.array(labels),
        class_names,
        name=root.resolve().name,
        split=split,
    )


def _require_disjoint(root: Path, split: str, names: set[str]) -> None:
    """Refuses a class that is in two splits: it would be tested on what was trained on."""
    for other in _SPLITS:
        if other == split:
            continue
        if shared := sorted(names.intersection(name for name, _ in _classes(root / other))):
            raise DataError(
                f"folder: class {shared[0]!r} is in both {root / split} and {root / other} "
                f"({len(shared)} such classes); expected classes of different names in every split"
            )


def _classes(folder: Path) -> list[tuple[str, list[Path]]]:
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        paths = sorted(
            Path(place, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES
        )
        if paths:
            found.append((Path(place).relative_to(folder).as_posix(), paths))
    return sorted(found)


def _read(path: Path, image_size: int | None) -> np.ndarray:
    """(H, W, 1 or 3) uint8."""
    if not path.is_file():  # To open a pipe would wait for its other end.
        raise DataError(f"folder: {path} is not a regular file")
    try:
        with Image.open(path) as image:
            image.verify()  # the checksums of a PNG file, which decoding its pixels leaves out
        with Image.open(path) as image:
            if image.mode not in _GREY_MODES | _COLOUR_MODES:
                raise DataError(f"folder: {path}: expected 8-bit images, got mode {image.mode!r}")
            image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    except DataError:
        raise
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        raise DataError(f"folder: cannot read {path}: {error}") from error
    if image_size is not None:
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def _stack(pictures: list[np.ndarray], folder: Path) -> np.ndarray:
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise DataError(
            f"folder: images in {folder} differ in size, such as {sizes[0]} and {sizes[-1]}; "
            "image_size brings them to one"
        )
    channels = max(picture.shape[2] for picture in pictures)
    images = np.empty((len(pictures), *sizes[0], channels), np.uint8)
    for target, picture in zip(images, pictures, strict=True):
        target[...] = picture
    return images
