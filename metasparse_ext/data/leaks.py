"""Images and classes in two splits: a learner would be tested on what it was trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from metasparse_ext.data.errors import DataError

_BLOCK = 1 << 20


def require_disjoint_names(owner: str, classes: Mapping[Path, Iterable[str]]) -> None:
    """Refuses a class that is in two splits.

    Args:
        owner: the data set, for messages.
        classes: the names of the classes in the folder of each split.
    """
    seen: dict[str, Path] = {}
    shared: list[tuple[str, Path, Path]] = []
    for place, names in classes.items():
        shared += [
            (name, other, place)
            for name in sorted(names)
            if (other := seen.setdefault(name, place)) != place
        ]
    if shared:
        name, one, other = shared[0]
        raise DataError(
            f"{owner}: class {name!r} is in both {one} and {other} ({len(shared)} such classes); "
            "expected classes of different names in every split; allow_overlap=True takes them so"
        )


def require_disjoint_files(owner: str, files: Mapping[str, Iterable[Path]]) -> None:
    """Refuses files of two splits that are the same byte for byte.

    Only files whose size is found in two splits are read.

    Args:
        owner: the data set, for messages.
        files: those of each split.
    """
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, paths in files.items():
        for path in paths:
            by_size[path.stat().st_size].append((split, path))
    seen: dict[bytes, tuple[str, Path]] = {}
    shared: list[tuple[Path, Path]] = []
    for group in by_size.values():
        if len({split for split, _ in group}) < 2:
            continue
        for split, path in group:
            first, one = seen.setdefault(_digest(owner, path), (split, path))
            if first != split:
                shared.append((one, path))
    if shared:
        raise DataError(
            f"{owner}: {shared[0][0]} and {shared[0][1]} are the same file, byte for byte, in two "
            f"splits ({len(shared)} such files); allow_overlap=True takes them so"
        )


def _digest(owner: str, path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{owner}: cannot read {path}: {error.strerror}") from error
    return digest.digest()
