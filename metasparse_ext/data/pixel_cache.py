"""Decoded images kept between runs: one file a split, which later runs map into memory.

A file holds the pixels (n, C, H, W) uint8, then a JSON object that says what they are, its length
(8 bytes, little endian) and a mark. So pixels are written in order, one copy of a picture in memory
at a time, and a file that was cut short has no mark at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL

from metasparse_ext.data.cache import cache_folder
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.listing import Listing
from metasparse_ext.data.options import ReadOptions

_FORMAT = 1  # raise it with any change to what is decoded or to how it is stored
_MARK = b"metasparse pixels\n"


def path_of(listing: Listing, options: ReadOptions) -> Path:
    """The file of these pictures: named by a digest of all that its bytes depend on."""
    # Channels are brought about after reading, from either file.
    asked = asdict(replace(options, channels=None, rotated_classes=False, splits=None))
    said = {
        "format": _FORMAT,
        "pillow": PIL.__version__,
        "of": [listing.name, listing.split, listing.choice],
        "options": asked,
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for file in listing.files:
        digest.update(os.fsencode(file.absolute()) + b"\0")
        try:
            seen = file.stat()
        except OSError:
            continue  # Whoever opens it says what is the matter.
        digest.update(b"%d\0%d\0" % (seen.st_size, seen.st_mtime_ns))
    name = re.sub(r"[^\w.-]", "_", f"{listing.name}-{listing.split}")
    return cache_folder() / f"{name}-{digest.hexdigest()[:20]}.pixels"


def finish(
    file: BinaryIO,
    shape: Sequence[int],
    offsets: Sequence[int],
    class_names: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Writes what comes after the pixels."""
    said = {
        "shape": list(shape),
        "offsets": list(offsets),
        "class_names": list(class_names),
        "notes": list(notes),
    }
    text = json.dumps(said).encode()
    file.write(text + len(text).to_bytes(8, "little") + _MARK)


def opened(path: Path, name: str, split: str) -> ImageClasses | None:
    """The images that are kept there, mapped into memory; None where there are none."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            said = _trailer(file)
        if said is None:
            return None
        images = np.memmap(path, np.uint8, "r", shape=tuple(said["shape"]))
        return as_classes(images, said, name, split)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Damaged: it is made anew.


def as_classes(images: np.ndarray, said: dict[str, Any], name: str, split: str) -> ImageClasses:
    """Images and the object that describes them, as classes."""
    return ImageClasses(
        images=images,
        offsets=np.array(said["offsets"], np.int64),
        class_names=tuple(said["class_names"]),
        name=name,
        split=split,
        notes=tuple(said["notes"]),
    )


def _trailer(file: BinaryIO) -> dict[str, Any] | None:
    end = len(_MARK) + 8
    size = file.seek(0, os.SEEK_END)
    if size < end:
        return None
    file.seek(size - end)
    length, mark = int.from_bytes(file.read(8), "little"), file.read()
    if mark != _MARK or length > size - end:
        return None
    file.seek(size - end - length)
    said = json.loads(file.read(length))
    return said if size == int(np.prod(said["shape"], dtype=np.int64)) + length + end else None
