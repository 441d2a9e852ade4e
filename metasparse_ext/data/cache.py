"""The folder where drawn and decoded images are kept between runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from metasparse_ext.data.errors import DataError


def cache_folder() -> Path:
    """``METASPARSE_CACHE``, else ``metasparse_ext`` under ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("METASPARSE_CACHE"):
        return in_home(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return in_home(base) / "metasparse_ext"


def in_home(path: str | os.PathLike[str]) -> Path:
    """The path, with a ~ at its beginning replaced by the user's home folder.

    Raises:
        DataError: if there is no such folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path}: there is no home folder; for drawn characters set METASPARSE_CACHE to a "
            "folder, for other data give a path without ~"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Opens a file that appears at ``path`` whole, when the block ends, or not at all.

    Any number of processes may write the same path at once: the last one to finish stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(unfinished, "xb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
