"""Data sets by name."""

from __future__ import annotations

import os
from pathlib import Path

from metasparse_ext.data.cache import in_home
from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.folder import read_folder
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.mixture import Mixture
from metasparse_ext.data.npz import find_npz, read_npz

# The names of the files of each set; all files that match are joined.
_NPZ_FILES = {"omniglot": "omniglot*.npz", "cifar-fs": "cifar_fs*.npz"}

DATASETS = ("glyphs", *_NPZ_FILES, "folder")


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
) -> ImageClasses | Mixture:
    """Loads one split of a data set, or of several, into memory.

    Args:
        name: ``"glyphs"`` (built in: drawn on first use, then cached), ``"omniglot"`` and
            ``"cifar-fs"`` (``omniglot*.npz`` and ``cifar_fs*.npz`` in ``root``; see
            ``metasparse_ext.data.npz`` for the format), or ``"folder"`` (a folder of images per
            class: ``root/SPLIT/CLASS/*``). ``"folder:PATH"`` brings its own ``root`` and is called
            by the path's last part. Several names joined by ``+`` are a mixture.
        root: the folder of the data; by default that of the environment variable
            ``METASPARSE_DATA``. Glyphs need none.
        split: ``"train"``, ``"val"`` or ``"test"``; their classes are disjoint.
        image_size: side to which images are resized; by default they keep their size, and those of
            a mixture get the largest one among them.
        channels: 1 or 3 to have grey or RGB images; by default they keep their channels, and a
            mixture of both is RGB.

    Returns:
        The classes of the split.

    Raises:
        DataError: a ValueError; unknown name, absent split or damaged file.
        DataNotFoundError: also a FileNotFoundError; no ``root``, or nothing of that name in it.
    """
    if "+" in name:
        parts = [load(part, root, split, image_size=image_size) for part in name.split("+")]
        return Mixture.of(parts, image_size=image_size, channels=channels)
    data = _read(name, root, split, image_size)
    if image_size is not None:
        data = data.resized(image_size)
    return data if channels is None else data.with_channels(channels)


def _read(
    name: str, root: str | os.PathLike[str] | None, split: str, image_size: int | None
) -> ImageClasses:
    if name == "glyphs":
        # Imported here because drawing needs matplotlib, which nothing else waits for.
        from metasparse_ext.data.glyphs import load_glyphs

        return load_glyphs(split)
    if name == "folder":
        return read_folder(_root(name, root), split, image_size)
    if name.startswith("folder:"):
        return read_folder(in_home(name.removeprefix("folder:")), split, image_size)
    if name in _NPZ_FILES:
        return read_npz(find_npz(_root(name, root), _NPZ_FILES[name], name), name, split)
    raise DataError(
        f"unknown data set {name!r}; known: {', '.join(DATASETS)}, or several joined by +"
    )


def _root(name: str, root: str | os.PathLike[str] | None) -> Path:
    chosen = root if root is not None else os.environ.get("METASPARSE_DATA")
    if not chosen:
        raise DataNotFoundError(
            f"{name}: no folder to read from; pass root or set METASPARSE_DATA to it"
        )
    return in_home(chosen)
