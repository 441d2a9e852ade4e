"""Data sets by name."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metasparse_ext._arguments import require_type
from metasparse_ext.data.cache import in_home
from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.listing import Layout, Request, Source, first_found
from metasparse_ext.data.mixture import Mixture
from metasparse_ext.data.npz import npz_file, npz_layout
from metasparse_ext.data.options import ReadOptions, parse
from metasparse_ext.data.readers import (
    aircraft,
    cifar,
    cub,
    flowers,
    folder,
    fungi,
    mini_imagenet,
    omniglot,
    tiered_imagenet,
)
from metasparse_ext.data.splits import published

# How each set may lie on disk; the first layout that a folder is of is read.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "omniglot": (npz_layout("omniglot"), *omniglot.LAYOUTS),
    "cifar-fs": (npz_layout("cifar-fs"), *cifar.CIFAR_FS),
    "fc100": (npz_layout("fc100"), *cifar.FC100),
    "mini-imagenet": (npz_layout("mini-imagenet"), *mini_imagenet.LAYOUTS),
    "tiered-imagenet": (npz_layout("tiered-imagenet"), *tiered_imagenet.LAYOUTS),
    "cub": (npz_layout("cub"), *cub.LAYOUTS),
    "aircraft": (npz_layout("aircraft"), *aircraft.LAYOUTS),
    "flowers": (npz_layout("flowers"), *flowers.LAYOUTS),
    "fungi": (npz_layout("fungi"), *fungi.LAYOUTS),
}
_FOLDER = Layout("folders SPLIT/CLASS, or CLASS with a list", folder.find, takes=("splits",))
_FILE = Layout("an .npz file", npz_file)

DATASETS = ("glyphs", *LAYOUTS, "folder")


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    fit: str = "squash",
    ground: str = "white",
    splits: str | os.PathLike[str] | None = None,
    bounding_boxes: bool | None = None,
    min_images: int = 1,
    skip_unreadable: bool = False,
    allow_overlap: bool = False,
    rotated_classes: bool = False,
    cache: bool = True,
) -> ImageClasses | Mixture:
    """Loads one split of a data set, or of several.

    Images are decoded once, by several threads, and kept in the folder ``METASPARSE_CACHE`` (else
    the user's cache folder), from where later calls map them into memory; they are decoded anew
    when a file or an option changes. docs/data.md lists the layouts and the options.

    Args:
        name: one of ``DATASETS``, such as ``"cub"``; ``"folder"``, a folder of images per class
            (``root/SPLIT/CLASS/*``); ``"NAME:PATH"``, which brings its own ``root``; or the path of
            an ``.npz`` file (see ``metasparse_ext.data.npz``). Each may be followed by options, as
            in ``"cub,splits=ye,min_images=20"``, which count before those given by keyword. Several
            joined by ``+`` are a mixture.
        root: the folder of the data; by default that of the environment variable
            ``METASPARSE_DATA``. Glyphs need none.
        split: ``"train"``, ``"val"`` or ``"test"``; their classes are disjoint.
        image_size: side to which images are resized; by default they keep their size, and those of
            a mixture get the largest one among them. Needed where they differ in size.
        channels: 1 or 3 to have grey or RGB images; by default they are grey where all are, and a
            mixture of both is RGB.
        fit: what is done to images that are not square: ``"squash"``, or ``"crop"`` to the largest
            square in their middle. Heeded with ``image_size``.
        ground: ``"white"`` or ``"black"``, what shows through transparent pixels.
        splits: which classes are in which split, of a data set whose layout does not say: the name
            of a published list (``metasparse_ext.data.published``), or a file of one's own.
        bounding_boxes: whether images are cut to their boxes; by default those of ``aircraft`` are.
        min_images: classes with fewer images are left out.
        skip_unreadable: leave out images that cannot be read; an error by default.
        allow_overlap: take a class, or files that are the same byte for byte, in two splits of
            ``folder`` or of a list of one's own; an error by default.
        rotated_classes: make four classes of each, turned by multiples of 90 degrees.
        cache: keep decoded images for next time.

    Returns:
        The classes of the split; ``notes`` says what was left out, which is also warned of.

    Raises:
        DataError: a ValueError; unknown name, absent split, damaged file, or an option that is
            wrong or means nothing here.
        DataNotFoundError: also a FileNotFoundError; no ``root``, or nothing of that name in it.
        TypeError: an argument of another type.
    """
    options = ReadOptions(
        image_size=image_size,
        channels=channels,
        fit=fit,
        ground=ground,
        splits=splits,
        bounding_boxes=bounding_boxes,
        min_images=min_images,
        skip_unreadable=skip_unreadable,
        allow_overlap=allow_overlap,
        rotated_classes=rotated_classes,
        cache=cache,
    )
    require_type("load", "name", name, str, "the name of a data set")
    require_type("load", "split", split, str, "the name of a split")
    if "+" not in name:
        return _load(name, root, split, options)
    alone = replace(options, channels=None)
    parts = [_load(part, root, split, alone) for part in name.split("+")]
    return Mixture.of(parts, image_size=image_size, channels=channels)


def _load(
    text: str, root: str | os.PathLike[str] | None, split: str, options: ReadOptions
) -> ImageClasses:
    found = find(text, root, split, options)
    options = found.options
    data = found.source.read(options).with_at_least(options.min_images)
    if options.image_size is not None:
        data = data.resized(options.image_size, options.fit)
    if options.rotated_classes:
        data = data.with_rotations()
    return data if options.channels is None else data.with_channels(options.channels)


@dataclass(frozen=True)
class Found:
    """One split of a data set, where it was found, not read yet.

    Attributes:
        layout: how it lies there, in a few words.
        root: the folder or the file; None of glyphs.
        source: what reads it.
        options: how it is to be read, with those that the name brought.
    """

    layout: str
    root: Path | None
    source: Source
    options: ReadOptions


def find(
    text: str,
    root: str | os.PathLike[str] | None,
    split: str,
    options: ReadOptions,
) -> Found:
    """Looks for one split of a data set without reading its images; see :func:`load`."""
    spec = parse(text)
    brought: dict[str, Any] = dict(spec.options)
    options = replace(options, **brought)
    if spec.name == "glyphs":
        return Found("built in", None, _Glyphs(split), options)
    if spec.path is None and spec.name.endswith(".npz"):
        path = in_home(spec.name)
        return _found(Request(path.stem, path, split, options), (_FILE,))
    if spec.name not in DATASETS:
        raise DataError(
            f"unknown data set {spec.name!r}; known: {', '.join(DATASETS)}, a path that ends in "
            ".npz, or several joined by +"
        )
    place = in_home(spec.path) if spec.path is not None else _root(spec.name, root)
    request = Request(spec.name, place, split, options)
    return _found(request, (_FOLDER,) if spec.name == "folder" else LAYOUTS[spec.name])


def absolute(text: str) -> str:
    """The name of a data set, or of several, whose paths do not depend on the present folder.

    What is no data set of ours, or cannot be read as one, stays as it is.
    """
    return "+".join(_absolute(part) for part in text.split("+"))


def _absolute(text: str) -> str:
    try:
        spec = parse(text)
        if spec.name.endswith(".npz") and spec.path is None:
            return _kept_readable(text, os.path.abspath(in_home(spec.name)))
        if spec.name not in DATASETS:
            return text
        place = spec.name
        if spec.path is not None:
            place += f":{os.path.abspath(in_home(spec.path))}"
        options = dict(spec.options)
        splits = options.get("splits")
        if splits is not None and splits not in published(spec.name):
            options["splits"] = os.path.abspath(in_home(str(splits)))
    except DataError:
        return text
    said = [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in options.items()
    ]
    return _kept_readable(text, ",".join([place, *said]))


def _kept_readable(text: str, changed: str) -> str:
    """The changed text, but not with a folder above whose name would be read as something else."""
    readable = changed.count("+") == text.count("+") and changed.count(",") == text.count(",")
    return changed if readable else text


def _found(request: Request, layouts: tuple[Layout, ...]) -> Found:
    layout, source = first_found(request, layouts)
    return Found(layout.text, request.root, source, request.options)


@dataclass(frozen=True)
class _Glyphs:
    """The built-in characters, as a source."""

    split: str

    def read(self, options: ReadOptions) -> ImageClasses:
        # Imported here because drawing needs matplotlib, which nothing else waits for.
        from metasparse_ext.data.glyphs import load_glyphs

        return load_glyphs(self.split)


def _root(name: str, root: str | os.PathLike[str] | None) -> Path:
    if root is not None:
        require_type("load", "root", root, (str, os.PathLike), "a path")
    chosen = root if root is not None else os.environ.get("METASPARSE_DATA")
    if not chosen:
        raise DataNotFoundError(
            f"{name}: no folder to read from; pass root or set METASPARSE_DATA to it"
        )
    return in_home(chosen)
