"""What is on disk: ``metasparse data info``, ``check`` and ``convert``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from metasparse_ext._arguments import require_path
from metasparse_ext.cli.messages import UserError, checked, file_path, in_flags
from metasparse_ext.data import DATASETS, DataError, ImageClasses, load
from metasparse_ext.data.cache import atomic_write, in_home
from metasparse_ext.data.images import counted
from metasparse_ext.data.listing import SPLIT_NAMES
from metasparse_ext.data.mixture import Mixture
from metasparse_ext.data.options import FITS, ReadOptions
from metasparse_ext.data.survey import SplitSurvey, recognized, survey

_PROBLEMS = 1


def _reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of how images are read."""
    command = click.option(
        "--fit",
        type=click.Choice(FITS),
        default="squash",
        show_default=True,
        help="What becomes of images that are not square.",
    )(command)
    command = click.option(
        "--image-size", type=click.IntRange(1), help="Resize images to this side."
    )(command)
    return click.argument("data")(command)  # fmt: skip


@click.group("data")
def data() -> None:
    """Look at image sets on disk, and decode them once for all.

    DATA is a folder or an .npz file, whose kind is found out; or, as for train --data,
    NAME:PATH, with options as in cub:PATH,splits=ye.
    """


@data.command("info")
@_reading
def info(data: str, image_size: int | None, fit: str) -> None:
    """Say what DATA is: its layout, and the classes and images of each split.

    Exit code 1 if it is nothing that can be read.
    """
    options = ReadOptions(image_size=image_size, fit=fit)
    found = [(name, survey(name, _root(data), options, decode=False)) for name in _names(data)]
    for name, splits in found:
        _print(name, splits)
    if all(split.error for _, splits in found for split in splits):
        sys.exit(_PROBLEMS)


@data.command("check")
@_reading
@click.option("--min-images", type=click.IntRange(1), default=1, show_default=True,
              help="Images that a class needs, such as shots and queries together.")  # fmt: skip
def check(data: str, image_size: int | None, fit: str, min_images: int) -> None:
    """Decode every image of DATA and say what is missing or damaged; exit code 1 if anything is."""
    options = ReadOptions(image_size=image_size, fit=fit, min_images=min_images)
    found = [(name, survey(name, _root(data), options, decode=True)) for name in _names(data)]
    for name, splits in found:
        _print(name, splits)
    if any(split.error or split.notes for _, splits in found for split in splits):
        sys.exit(_PROBLEMS)


@data.command("convert")
@_reading
@click.option("--out", type=file_path,
              help="Write an .npz file of all splits as well, to be read by its path.")  # fmt: skip
def convert(data: str, image_size: int | None, fit: str, out: Path | None) -> None:
    """Decode DATA into the cache, from where later commands map it into memory."""
    names = _names(data)
    if out is not None and out.is_dir():
        raise UserError(f"data convert: expected --out to be a file, got the folder {out}")
    if len(names) > 1:
        raise UserError(f"data convert: {data} may be {' or '.join(names)}: say NAME:{data}")
    read: list[ImageClasses] = []
    for split in SPLIT_NAMES:
        try:
            classes = load(names[0], _root(data), split, image_size=image_size, fit=fit)
        except DataError as error:
            click.echo(f"{split:7}not read: {error}", err=True)
            continue
        if isinstance(classes, Mixture):
            raise UserError("data convert: expected one data set, got several")
        click.echo(f"{split:7}{classes!r}")
        read.append(classes)
    if not read:
        raise UserError(f"data convert: no split of {data} could be read")
    if out is not None:
        _write(out, read)


def _names(data: str) -> list[str]:
    """How ``load`` names what is there."""
    path = checked(lambda: in_home(require_path("data", "DATA", data)))
    if not path.exists():
        if os.sep in data and not re.search(r"[:+,]|\.npz$", data):
            raise UserError(f"data: no folder or file {data}")
        place, *options = data.split(",")
        if options and place not in DATASETS and in_home(place).is_dir():
            raise UserError(
                f"data: {place} is a folder, and options are of a data set: say NAME:{data}, "
                f"such as folder:{data}"
            )
        return [data]
    names = recognized(path)
    if not names:
        raise UserError(
            f"data: {data} is of no known layout: expected folders {data}/train/CLASS, val/CLASS "
            f"and test/CLASS of images; with folders {data}/CLASS, folder:{data},splits=FILE "
            "names a list of the classes of each split; or NAME:PATH of a known data set"
        )
    return names


def _root(data: str) -> Path | None:
    path = in_home(data)
    return path if path.is_dir() else None


def _print(name: str, splits: list[SplitSurvey]) -> None:
    click.echo(f"{name}: {next((split.layout for split in splits if split.layout), 'unreadable')}")
    for split in splits:
        click.echo(f"  {split.split:6}{_line(split)}")
        for note in split.notes:
            click.echo(f"        {in_flags(note)}")


def _line(split: SplitSurvey) -> str:
    if split.error is not None:
        return in_flags(split.error)
    counts = sorted(split.classes.values()) or [0]
    each = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
    classes, images = counted(len(split.classes), "class"), counted(sum(counts), "image")
    text = f"{classes}, {images}, {each} each"
    if not split.sizes:
        return text
    sizes = sorted({(height, width) for _, height, width in split.sizes})
    channels = " or ".join(map(str, sorted({shape[0] for shape in split.sizes})))
    first, last = (f"{height}x{width}" for height, width in (sizes[0], sizes[-1]))
    if len(split.sizes) == 1:
        return f"{text}, {first}x{channels}"
    several = first if len(sizes) == 1 else f"{len(sizes)} sizes from {first} to {last}"
    return f"{text}, of {several}, {channels} channel{'' if channels == '1' else 's'}"


def _write(path: Path, splits: list[ImageClasses]) -> None:
    """Writes an .npz file of all splits, whose images have one shape."""
    shapes = {classes.shape for classes in splits}
    if len(shapes) > 1:
        raise UserError(
            f"data convert: expected splits of one shape, got {sorted(shapes)}: see --image-size"
        )
    names = [name for classes in splits for name in classes.class_names]
    sizes = np.concatenate([classes.sizes for classes in splits])
    images = np.concatenate([classes.images for classes in splits]).transpose(0, 2, 3, 1)
    with atomic_write(path) as file:
        np.savez(
            file,
            images=images[..., 0] if images.shape[-1] == 1 else images,
            labels=np.repeat(np.arange(len(names)), sizes),
            class_names=np.array(names),
            split=np.array([s.split for s in splits for _ in s.class_names]),
        )
    click.echo(f"written {path}")
