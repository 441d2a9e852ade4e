"""What a reader finds on disk: the pictures of one split by class, not decoded yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.options import ReadOptions
from metasparse_ext.data.picture import Picture

if TYPE_CHECKING:
    from metasparse_ext.data.images import ImageClasses

Classes = Mapping[str, Sequence[Picture]]

# By what names the folders and files of a split go.
SPLIT_NAMES = {
    "train": ("train", "meta-train"),
    "val": ("val", "validation", "valid", "meta-val"),
    "test": ("test", "meta-test"),
}


@dataclass(frozen=True)
class Request:
    """What is looked for: one split of a data set.

    Attributes:
        name: the data set, for messages and for the result.
        root: the folder to look in.
        split: the split.
        options: how it is to be read.
    """

    name: str
    root: Path
    split: str
    options: ReadOptions


class Source(Protocol):
    """One split that was found."""

    def read(self, options: ReadOptions) -> ImageClasses:
        """Reads it into memory, or opens what was kept of an earlier time."""
        ...


@dataclass(frozen=True)
class Listing:
    """The pictures of one split.

    Attributes:
        name: the data set.
        split: the split.
        files: all that the pixels, the classes and their order depend on.
        classes: the pictures of each class; called only where nothing was kept of an earlier time.
        choice: what else the classes depend on, such as a list of them.
        strays: files among the pictures that are none.
    """

    name: str
    split: str
    files: Sequence[Path]
    classes: Callable[[], Classes]
    choice: str = ""
    strays: Sequence[Path] = field(default=())

    def read(self, options: ReadOptions) -> ImageClasses:
        """See :class:`Source`."""
        from metasparse_ext.data.reading import read_pictures

        return read_pictures(self, options)


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on disk.

    Attributes:
        text: what it looks like, in a few words, for messages.
        find: gives the split, or None where the folder is not of this layout.
        takes: those of ``splits`` and ``bounding_boxes`` that mean something here.
    """

    text: str
    find: Callable[[Request], Source | None]
    takes: Sequence[str] = ()


def first_found(request: Request, layouts: Iterable[Layout]) -> tuple[Layout, Source]:
    """The first layout that the folder is of, and what is in it.

    Raises:
        DataNotFoundError: there is no such folder, or it is of none of the layouts.
    """
    layouts = tuple(layouts)
    for layout in layouts:
        source = layout.find(request)
        if source is not None:
            _require_taken(request, layout)
            return layout, source
    if not request.root.is_dir():
        raise DataNotFoundError(f"{request.name}: no folder {request.root}")
    there = sorted(path.name for path in request.root.iterdir() if not path.name.startswith("."))
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    raise DataNotFoundError(
        f"{request.name}: nothing of split {request.split} in {request.root}; looked for "
        f"{', or '.join(layout.text for layout in layouts)}; there: {shown or 'nothing'}"
        f"{_hint_of_parent(request, layouts)}"
    )


def _hint_of_parent(request: Request, layouts: Iterable[Layout]) -> str:
    """That the folder above is meant, if one of the layouts is there."""
    above = replace(request, root=request.root.resolve().parent)
    with suppress(DataError, OSError):
        if any(layout.find(above) is not None for layout in layouts):
            return f"; it is in the folder above, {above.root}"
    return ""


def _require_taken(request: Request, layout: Layout) -> None:
    """Refuses an option that would change nothing."""
    options = request.options
    if options.splits is not None and "splits" not in layout.takes:
        raise DataError(
            f"{request.name}: expected splits to be None, as {layout.text} in {request.root} have "
            f"their own, got {str(options.splits)!r}"
        )
    if options.bounding_boxes and "bounding_boxes" not in layout.takes:
        raise DataError(
            f"{request.name}: expected bounding_boxes to be False, as {layout.text} in "
            f"{request.root} have none, got True"
        )


def places(root: Path, *names: str) -> list[Path]:
    """The folder itself, and the folders in it of these names."""
    return [root, *(root / name for name in names if (root / name).is_dir())]


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split, by any of its usual names."""
    names = SPLIT_NAMES.get(split, (split,))
    return next((root / name for name in names if (root / name).is_dir()), None)


def split_file(root: Path, split: str, pattern: str) -> Path | None:
    """The file of a split; ``{}`` in the pattern stands for the split's name."""
    names = SPLIT_NAMES.get(split, (split,))
    found = (root / pattern.format(name) for name in names)
    return next((path for path in found if path.exists()), None)
