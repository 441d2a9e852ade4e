"""The image files below a folder, by the folder they lie in."""

from __future__ import annotations

import os
from pathlib import Path

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.picture import suffixes


def image_files(folder: Path, owner: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Finds the images in a folder and in those below it.

    Folders are entered in the order of their names; links to folders are followed, unless they
    lead back to one that they are in. What begins with a dot is passed over.

    Args:
        folder: where to look.
        owner: the data set, for messages.

    Returns:
        The sorted paths by their folder, as a path from ``folder`` (``Greek/alpha``, ``.`` for
        ``folder`` itself), sorted; and the files that are no images, sorted.

    Raises:
        DataError: a folder cannot be read.
    """
    images: dict[str, list[Path]] = {}
    strays: list[Path] = []
    above = frozenset(map(_identity, folder.resolve().parents))
    _enter(folder, folder, above, images, strays, owner)
    return dict(sorted(images.items())), strays


def _identity(folder: Path) -> tuple[int, int]:
    seen = folder.stat()
    return seen.st_dev, seen.st_ino


def _enter(
    folder: Path,
    top: Path,
    above: frozenset[tuple[int, int]],
    images: dict[str, list[Path]],
    strays: list[Path],
    owner: str,
) -> None:
    try:
        here = _identity(folder)
        if here in above:
            return  # A link to a folder that this one is in.
        with os.scandir(folder) as entries:
            visible = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{owner}: cannot read folder {folder}: {error.strerror}") from error
    for entry in visible:
        path = Path(entry.path)
        if entry.is_dir():
            _enter(path, top, above | {here}, images, strays, owner)
        elif path.suffix.lower() in suffixes():
            images.setdefault(folder.relative_to(top).as_posix(), []).append(path)
        else:
            strays.append(path)
