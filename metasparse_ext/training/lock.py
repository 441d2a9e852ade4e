"""One process trains in a run folder at a time."""

from __future__ import annotations

import os
from pathlib import Path

from metasparse_ext.training import atomic

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # Windows: there is no such lock


class RunInUseError(Exception):
    """A run folder in which another process trains."""


class RunLock:
    """A lock of the operating system on a file of a run folder; it dies with the process.

    Args:
        path: The file, which stays when the lock is released.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Takes the lock, if this object has not got it; False if another one holds it."""
        if fcntl is None or self._descriptor is not None:
            return True
        descriptor = atomic.open_or_create(self._path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Gives the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()
