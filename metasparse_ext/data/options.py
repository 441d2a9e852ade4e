"""How a data set is to be read, and the text by which a command or a configuration says it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metasparse_ext._arguments import (
    require,
    require_choice,
    require_count,
    require_flag,
    require_type,
)
from metasparse_ext.data.errors import DataError

FITS = ("squash", "crop")
GROUNDS = ("white", "black")
# No image has a longer side.
LARGEST_SIDE = 1 << 20
# So many batches, or images of a class, are never there; a larger number is a slip.
MOST = (1 << 31) - 1


def require_name(owner: str, argument: str, value: object, names: Sequence[str]) -> None:
    """Refuses what is not one of some names, arrays among it, which compare by element."""
    require_type(owner, argument, value, str, f"one of {', '.join(map(repr, names))}")
    require_choice(owner, argument, value, names)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What :func:`metasparse_ext.data.load` says of each."""

    image_size: int | None = None
    channels: int | None = None
    fit: str = "squash"
    ground: str = "white"
    splits: str | os.PathLike[str] | None = None
    bounding_boxes: bool | None = None
    min_images: int = 1
    skip_unreadable: bool = False
    allow_overlap: bool = False
    rotated_classes: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise DataError(str(error)) from error

    def _check(self) -> None:
        if self.image_size is not None:
            require_count("load", "image_size", self.image_size, least=1, most=LARGEST_SIDE)
        if self.channels is not None:
            require_count("load", "channels", self.channels)
            require_choice("load", "channels", self.channels, (1, 3))
        require_name("load", "fit", self.fit, FITS)
        require_name("load", "ground", self.ground, GROUNDS)
        require_count("load", "min_images", self.min_images, least=1, most=MOST)
        if self.bounding_boxes is not None:
            require_flag("load", "bounding_boxes", self.bounding_boxes)
        for name in ("skip_unreadable", "allow_overlap", "rotated_classes", "cache"):
            require_flag("load", name, getattr(self, name))
        if self.splits is not None:
            expected = "the name of a split list or the path of a file"
            require_type("load", "splits", self.splits, (str, os.PathLike), expected)
            require(bool(os.fspath(self.splits)), "load", "splits", expected, self.splits)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"expected a whole number, got {text!r}") from None


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise DataError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


# The options that a name may bring, and how the text of each is read.
_READERS: dict[str, Callable[[str], object]] = {
    "fit": str,
    "ground": str,
    "splits": str,
    "bounding_boxes": _flag,
    "min_images": _number,
    "skip_unreadable": _flag,
    "allow_overlap": _flag,
    "rotated_classes": _flag,
}


@dataclass(frozen=True)
class Spec:
    """A data set as a command names it: ``NAME[:PATH][,OPTION=VALUE]...``.

    Attributes:
        name: such as ``"cub"``.
        path: the folder or file it brings, or None.
        options: those of :class:`ReadOptions` it brings.
    """

    name: str
    path: Path | None
    options: Mapping[str, object]


def parse(text: str) -> Spec:
    """Reads ``NAME[:PATH][,OPTION=VALUE]...``; commas that no known option follows are the path's.

    Raises:
        DataError: a value that its option does not take, or an option of no known name.
    """
    place, *parts = text.split(",")
    options: dict[str, object] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key in _READERS and equals:
            options[key] = _value(text, key, value)
        elif options or ":" not in place:
            raise DataError(
                f"{text}: expected options to be of {', '.join(_READERS)}, each as NAME=VALUE, "
                f"got {part!r}"
            )
        else:
            place += f",{part}"
    name, colon, path = place.partition(":")
    if colon and not path:
        raise DataError(f"{text}: expected a path after {name}:, got nothing")
    return Spec(name, Path(path) if colon else None, options)


def _value(text: str, key: str, value: str) -> object:
    try:
        return _READERS[key](value)
    except DataError as error:
        raise DataError(f"{text}: {key}: {error}") from error
