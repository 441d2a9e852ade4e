"""Which sources a record is about, so that a stale one shows."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(folder: Path, pattern: str) -> str:
    """SHA-256 of the names and texts of the files below a folder that match."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob(pattern)):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
