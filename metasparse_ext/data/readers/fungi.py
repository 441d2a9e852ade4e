"""FGVC Fungi (2018): ``images`` with the annotations ``train.json`` and ``val.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metasparse_ext._json import parse
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Layout, Listing, Request, places
from metasparse_ext.data.picture import Picture, file_picture
from metasparse_ext.data.readers.folder import require_all
from metasparse_ext.data.splits import split_list


def _annotated(request: Request) -> Listing | None:
    for place in places(request.root, "fungi", "fgvcx-fungi"):
        tables = [place / "train.json", place / "val.json"]
        if all(table.is_file() for table in tables):
            return _of_folder(request, place, tables)
    return None


def _of_folder(request: Request, place: Path, tables: list[Path]) -> Listing:
    lists = split_list(request, "fungi")
    paths: dict[str, list[Path]] = {name: [] for name in sorted(lists.of(request.split))}
    for table in tables:
        for name, file in _images(table, request.name):
            if name in paths:
                paths[name].append(place / file)
    missing = [name for name, group in paths.items() if not group]
    require_all(request, missing, lists, " and ".join(map(str, tables)))

    def classes() -> dict[str, list[Picture]]:
        return {name: list(map(file_picture, group)) for name, group in paths.items()}

    return Listing(
        name=request.name,
        split=request.split,
        files=[*tables, *(path for group in paths.values() for path in group)],
        classes=classes,
        choice="\n".join(paths),
    )


def _images(path: Path, owner: str) -> list[tuple[str, str]]:
    """(class, file) of every image; as names are not unique, a class is ``NNNN.NAME``."""
    try:
        said: Any = parse(path.read_bytes())
        names = {each["id"]: f"{each['id']:04}.{each['name']}" for each in said["categories"]}
        files = {each["id"]: str(each["file_name"]) for each in said["images"]}
        return [
            (names[each["category_id"]], files[each["image_id"]]) for each in said["annotations"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{owner}: cannot read {path}: expected categories, images and annotations, got "
            f"{type(error).__name__}: {error}"
        ) from error


LAYOUTS = (Layout("train.json, val.json and the images they name", _annotated, takes=("splits",)),)
