"""Files that are either the old one or the new one, whenever the process dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file by what ``write`` writes, or leaves it untouched.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and only then take
    the name.
    """
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _flush_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file, as :func:`replace` does."""
    replace(path, lambda file: file.write(text.encode()))


def _flush_folder(folder: Path) -> None:
    """Makes the new name itself durable, where the system can open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
