"""FGVC Aircraft: variants as classes, each image cut to its bounding box unless told not to.

The box leaves the banner out that every image has at its bottom, as Meta-Dataset does.
"""

from __future__ import annotations

from pathlib import Path

from metasparse_ext.data.errors import DataError
from metasparse_ext.data.listing import Layout, Listing, Request, places
from metasparse_ext.data.picture import Box, Picture, file_picture
from metasparse_ext.data.readers.folder import require_all
from metasparse_ext.data.readers.tables import rows
from metasparse_ext.data.splits import split_list

_LABELS = tuple(f"images_variant_{part}.txt" for part in ("train", "val", "trainval", "test"))
_BOXES = "images_box.txt"


def _data(request: Request) -> Listing | None:
    for place in places(request.root, "fgvc-aircraft-2013b", "aircraft"):
        for data in places(place, "data"):
            if (data / _LABELS[-1]).is_file() and (data / "images").is_dir():
                return _of_folder(request, data)
    return None


def _of_folder(request: Request, data: Path) -> Listing:
    lists = split_list(request, "aircraft")
    tables = [data / name for name in _LABELS if (data / name).is_file()]
    wanted: dict[str, dict[Path, None]] = {name: {} for name in sorted(lists.of(request.split))}
    for table in tables:
        for image, variant in rows(table, request.name, str, str):
            if variant in wanted:
                wanted[variant][data / "images" / f"{image}.jpg"] = None
    missing = [name for name, paths in wanted.items() if not paths]
    require_all(request, missing, lists, str(data))
    boxed = request.options.bounding_boxes is not False
    if boxed:
        tables.append(data / _BOXES)
    paths = {name: sorted(group) for name, group in wanted.items()}
    return Listing(
        name=request.name,
        split=request.split,
        files=[*tables, *(path for group in paths.values() for path in group)],
        classes=lambda: _pictures(paths, data, boxed, request.name),
        choice="\n".join(paths),
    )


def _pictures(
    paths: dict[str, list[Path]], data: Path, boxed: bool, owner: str
) -> dict[str, list[Picture]]:
    boxes = _boxes(data / _BOXES, owner) if boxed else {}
    for group in paths.values():
        for path in group if boxed else ():
            if path.stem not in boxes:
                raise DataError(
                    f"{owner}: {data / _BOXES} has no box of {path.name}; bounding_boxes=False "
                    "takes whole images"
                )
    return {
        name: [file_picture(path, boxes.get(path.stem)) for path in group]
        for name, group in paths.items()
    }


def _boxes(path: Path, owner: str) -> dict[str, Box]:
    """The box of each image; the file counts pixels from 1, the last one included."""
    return {
        image: (left - 1, top - 1, right, bottom)
        for image, left, top, right, bottom in rows(path, owner, str, int, int, int, int)
    }


LAYOUTS = (
    Layout("data/images and data/images_variant_*.txt", _data, takes=("splits", "bounding_boxes")),
)
