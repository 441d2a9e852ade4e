"""What a folder or a file holds, and what is the matter with it, without keeping its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import ImageClasses, counted, left_out
from metasparse_ext.data.listing import SPLIT_NAMES, Listing
from metasparse_ext.data.options import ReadOptions
from metasparse_ext.data.reading import examined
from metasparse_ext.data.registry import DATASETS, Found, find


@dataclass(frozen=True)
class SplitSurvey:
    """One split as it was found.

    Attributes:
        split: its name.
        layout: how it lies on disk, in a few words.
        classes: the number of images of each class.
        sizes: how many images are of each (C, H, W); of none where only names were looked at.
        notes: what is the matter with it, in a sentence each.
        error: why it cannot be read, or None.
    """

    split: str
    layout: str = ""
    classes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    error: str | None = None


def recognized(path: Path) -> list[str]:
    """The data sets that a folder may be, or the file itself; ``["cub"]``, such as for ``load``.

    Raises:
        DataNotFoundError: nothing is there.
    """
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise DataNotFoundError(f"data: no folder or file {path}")
    options = ReadOptions()
    return [name for name in DATASETS if name != "glyphs" and _is_there(name, path, options)]


def _is_there(name: str, path: Path, options: ReadOptions) -> bool:
    for split in SPLIT_NAMES:
        try:
            find(name, path, split, options)
        except DataNotFoundError:
            continue
        except DataError:
            return True  # Of this layout, and something is the matter with it.
        return True
    return False


def survey(
    text: str, root: Path | None, options: ReadOptions, *, decode: bool
) -> list[SplitSurvey]:
    """Looks at every split of a data set.

    Args:
        text: the data set, as for :func:`metasparse_ext.data.load`.
        root: its folder.
        options: how it would be read.
        decode: whether to decode every image, or to look at names alone.
    """
    return [_surveyed(text, root, split, options, decode) for split in SPLIT_NAMES]


def _surveyed(
    text: str, root: Path | None, split: str, options: ReadOptions, decode: bool
) -> SplitSurvey:
    try:
        found = find(text, root, split, options)
        if isinstance(found.source, Listing):
            return _of_listing(found, found.source, split, decode)
        return _of_classes(found, found.source.read(found.options), split)
    except DataError as error:
        return SplitSurvey(split, error=str(error))


def _of_listing(found: Found, listing: Listing, split: str, decode: bool) -> SplitSurvey:
    strays = [str(path) for path in listing.strays]
    notes = [left_out(strays, "file", "of no image format")] if strays else []
    classes = listing.classes()
    counts = {name: len(classes[name]) for name in sorted(classes)}
    if not decode:
        return SplitSurvey(split, found.layout, counts, {}, notes)
    sizes: Counter[tuple[int, ...]] = Counter()
    unreadable: Counter[str] = Counter()
    names = []
    for name, each, size in examined(listing, replace(found.options, skip_unreadable=True)):
        if size is None:
            unreadable[name] += 1
            names.append(each.name)
        else:
            sizes[size] += 1
    if names:
        notes.append(left_out(names, "image", "that cannot be read"))
    counts = {name: count - unreadable[name] for name, count in counts.items()}
    least = found.options.min_images
    if few := [name for name, count in counts.items() if count < least]:
        notes.append(left_out(few, "class", f"with fewer than {counted(least, 'image')}"))
    shapes = {size[1:] for size in sizes}
    if len(shapes) > 1 and found.options.image_size is None:
        notes.append(f"images of {len(shapes)} sizes: image_size brings them to one")
    return SplitSurvey(split, found.layout, counts, sizes, notes)


def _of_classes(found: Found, data: ImageClasses, split: str) -> SplitSurvey:
    counts = dict(zip(data.class_names, data.sizes.tolist(), strict=True))
    return SplitSurvey(split, found.layout, counts, {data.shape: len(data.images)}, data.notes)
