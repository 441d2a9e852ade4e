"""All that a run writes: files that are the old one or the new one, whenever the process dies.

Every call of the operating system that changes a file or a folder goes through :func:`_system`, so
that a test can make each of them fail, or end the process there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

# The rights of a new file, less those that the process's umask takes away.
_RIGHTS = 0o666


def _system(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


def replace(path: Path, data: bytes) -> None:
    """Replaces a file by these bytes, or leaves it untouched.

    The bytes go to a temporary file of this process in the same folder, are flushed to the disk,
    and only then take the name.

    Raises:
        OSError: naming ``path``, if it cannot be written.
    """
    with _naming(path):
        temporary = _write_beside(path, data)
        try:
            _system(os.replace, temporary, path)
        except OSError:
            _discard(temporary)
            raise
        _flush_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file, as :func:`replace` does."""
    replace(path, text.encode())


def replace_keeping(path: Path, previous: Path, data: bytes) -> None:
    """Replaces a file as :func:`replace` does; the one that it was takes the name ``previous``.

    A process that dies between the two renamings leaves ``previous`` alone.
    """
    with _naming(path):
        temporary = _write_beside(path, data)
    try:
        if path.exists():
            with _naming(previous):
                _system(os.replace, path, previous)
        with _naming(path):
            _system(os.replace, temporary, path)
            _flush_folder(path.parent)
    except OSError:
        _discard(temporary)
        raise


def _write_beside(path: Path, data: bytes) -> Path:
    """Writes a temporary file beside ``path`` and flushes it; nothing is left if that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = _system(os.open, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _RIGHTS)
        try:
            _write_all(descriptor, data)
            _system(os.fsync, descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        _discard(temporary)
        raise
    return temporary


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where they are missing."""
    if folder.is_dir():
        return
    with _naming(folder):
        _system(os.makedirs, folder)
        _flush_folder(folder.parent)


def open_or_create(path: Path) -> int:
    """A descriptor of a file for reading and writing, which is made where it is missing."""
    with _naming(path):
        return _system(os.open, path, os.O_RDWR | os.O_CREAT, _RIGHTS)


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    with _naming(path), contextlib.suppress(FileNotFoundError):
        _system(os.unlink, path)


def move(source: Path, target: Path) -> None:
    """Gives a file another name in its folder, which it takes from a file that has it."""
    with _naming(target):
        _system(os.replace, source, target)
        _flush_folder(target.parent)


def clean(folder: Path, names: tuple[str, ...]) -> None:
    """Removes what processes that died left of files of these names, which none writes now."""
    for name in names:
        for leftover in folder.glob(f".{name}.*.tmp"):
            remove(leftover)


class Appender:
    """Appends lines to a file; each goes to the operating system whole, as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _naming(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._descriptor = _system(os.open, path, flags, _RIGHTS)

    def append(self, line: str) -> None:
        """Appends a line, to which the newline is added."""
        with _naming(self._path):
            _write_all(self._descriptor, f"{line}\n".encode())

    def flush(self) -> None:
        """Waits until all lines are on the disk."""
        with _naming(self._path):
            _system(os.fsync, self._descriptor)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[_system(os.write, descriptor, left) :]


def _discard(temporary: Path) -> None:
    """Removes a temporary file of a write that failed, whose error is the one to be seen."""
    with contextlib.suppress(OSError):
        os.unlink(temporary)


def _flush_folder(folder: Path) -> None:
    """Makes the new name itself durable, where the system can open a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _system(os.fsync, descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None]:
    """Errors name the file that was to be written, not a temporary one, or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
