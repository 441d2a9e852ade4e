"""Whether the directory of a TIFF file is whole: Pillow warns of what is damaged, and goes on."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

# Formats of the offset of a directory, its number of entries and the count of an entry, by the
# number that says which TIFF this is: TIFF 6.0, BigTIFF.
_LAYOUTS = {42: ("I", "H", "I"), 43: ("Q", "Q", "Q")}
_PRIVATE = 1 << 15  # tags from here on are a writer's own: no pixel depends on them


def damage(file: BinaryIO, read: Mapping[int, Any]) -> str | None:
    """What is wrong with the first directory, or None.

    Args:
        file: An open TIFF file; its position is kept.
        read: The values that a reader took from it, by tag.

    Source: TIFF revision 6.0, section 2; the BigTIFF design.
    """
    position, seen = file.tell(), set()
    try:
        for tag, count in _entries(file):
            if tag in seen:
                return f"TIFF tag {tag} comes twice"
            seen.add(tag)
            if tag < _PRIVATE and tag not in read:
                return f"TIFF tag {tag} has no data"
            if isinstance(read.get(tag), int) and count != 1:
                return f"TIFF tag {tag} has {count} values instead of one"
    except struct.error:
        return "the TIFF directory is cut off"
    finally:
        file.seek(position)
    return None


def _entries(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Tag and number of values of each entry of the first directory."""
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    (kind,) = _unpacked(file, order + "H")
    offset, number, count = _LAYOUTS[kind]
    if kind == 43:
        file.seek(8)  # behind the size of an offset, and two zeros
    (start,) = _unpacked(file, order + offset)
    file.seek(start)
    (entries,) = _unpacked(file, order + number)
    for _ in range(entries):
        # The last is the value or where it lies, as long as an offset.
        tag, _, values, _ = _unpacked(file, order + "HH" + count + offset)
        yield tag, values
    _unpacked(file, order + offset)  # where the next directory is


def _unpacked(file: BinaryIO, kind: str) -> tuple[int, ...]:
    return struct.unpack(kind, file.read(struct.calcsize(kind)))
