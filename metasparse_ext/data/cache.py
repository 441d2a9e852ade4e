"""The folder where generated data is kept between runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def cache_folder() -> Path:
    """``METASPARSE_CACHE``, else ``metasparse_ext`` under ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("METASPARSE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "metasparse_ext"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
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
