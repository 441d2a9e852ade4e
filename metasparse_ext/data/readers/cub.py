"""CUB-200-2011: ``images/CLASS/*``, with the bounding boxes of ``bounding_boxes.txt``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Classes, Layout, Listing, Request, places
from metasparse_ext.data.picture import Box
from metasparse_ext.data.readers.folder import listed, mostly_there
from metasparse_ext.data.readers.tables import rows
from metasparse_ext.data.splits import split_list

_PATHS = "images.txt"
_BOXES = "bounding_boxes.txt"


def _images(request: Request) -> Listing | None:
    for place in places(request.root, "CUB_200_2011", "cub"):
        lists = split_list(request, "cub")
        if not mostly_there(place / "images", lists.of(request.split)):
            continue
        found = listed(request, [place / "images"], lists)
        if not request.options.bounding_boxes:
            return found
        tables = [place / _PATHS, place / _BOXES]
        return replace(
            found,
            files=[*tables, *found.files],
            classes=partial(_boxed, found, place, request.name),
        )
    return None


def _boxed(found: Listing, place: Path, owner: str) -> Classes:
    classes, boxes = found.classes(), _boxes(place, owner)
    for each in (picture for pictures in classes.values() for picture in pictures):
        if each.name not in boxes:
            raise DataError(f"{owner}: {place / _BOXES} has no box of {each.name}")
    return {
        name: [replace(each, box=boxes[each.name]) for each in pictures]
        for name, pictures in classes.items()
    }


def _boxes(place: Path, owner: str) -> dict[str, Box]:
    """The box of each image, from its left, top, width and height."""
    numbers = {path: number for number, path in rows(place / _PATHS, owner, str, str)}
    boxes = {
        number: (round(left), round(top), round(left + width), round(top + height))
        for number, left, top, width, height in rows(
            place / _BOXES, owner, str, float, float, float, float
        )
    }
    return {
        str(place / "images" / path): boxes[number]
        for path, number in numbers.items()
        if number in boxes
    }


LAYOUTS = (
    Layout("the folder images of folders CLASS", _images, takes=("splits", "bounding_boxes")),
)
