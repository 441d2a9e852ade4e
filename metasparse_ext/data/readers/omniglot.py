"""Omniglot: the folders or archives ``images_background`` and ``images_evaluation``.

A class is a character, ``ALPHABET/characterNN``. Strokes are made bright on dark, as they are in
our own files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Layout, Listing, Request, places
from metasparse_ext.data.picture import Picture, member_picture
from metasparse_ext.data.readers.folder import listed, require_all
from metasparse_ext.data.splits import split_list

_PARTS = ("images_background", "images_evaluation")
_INSIDE = ("omniglot", "omniglot-py", "python")


def _folders(request: Request) -> Listing | None:
    for place in places(request.root, *_INSIDE):
        # An archive may hold its own name once more: images_background/images_background/...
        roots = [
            inner if (inner := place / part / part).is_dir() else place / part
            for part in _PARTS
            if (place / part).is_dir()
        ]
        if roots:
            found = listed(request, roots, split_list(request, "omniglot"))
            return replace(found, classes=partial(_bright, found))
    return None


def _bright(found: Listing) -> dict[str, list[Picture]]:
    return {
        name: [replace(each, inverted=True) for each in pictures]
        for name, pictures in found.classes().items()
    }


def _archives(request: Request) -> Listing | None:
    for place in places(request.root, *_INSIDE):
        paths = [path for part in _PARTS if (path := place / f"{part}.zip").is_file()]
        if paths:
            lists = split_list(request, "omniglot")
            return Listing(
                name=request.name,
                split=request.split,
                files=paths,
                classes=partial(_members, request, paths),
                choice="\n".join(lists.of(request.split)),
            )
    return None


def _members(request: Request, paths: Sequence[Path]) -> dict[str, list[Picture]]:
    lists = split_list(request, "omniglot")
    wanted: dict[str, list[Picture]] = {name: [] for name in sorted(lists.of(request.split))}
    for path in paths:
        try:
            archive = zipfile.ZipFile(path)  # It stays open as long as its pictures do.
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{request.name}: cannot read {path}: {error}") from error
        for member in sorted(archive.namelist()):
            *_, alphabet, character, file = ("", "", *member.split("/"))
            name = f"{alphabet}/{character}"
            if name in wanted and file.endswith(".png") and not file.startswith("."):
                wanted[name].append(member_picture(archive, member, inverted=True))
    missing = [name for name, pictures in wanted.items() if not pictures]
    require_all(request, missing, lists, " and ".join(map(str, paths)))
    return wanted


LAYOUTS = (
    Layout("folders images_background and images_evaluation", _folders, takes=("splits",)),
    Layout("images_background.zip and images_evaluation.zip", _archives, takes=("splits",)),
)
