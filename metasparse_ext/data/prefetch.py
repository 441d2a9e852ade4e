"""Computing the items of a sequence ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TypeVar

Item = TypeVar("Item")

_AHEAD_PER_WORKER = 2


def prefetch(
    function: Callable[[int], Item], start: int, workers: int
) -> Generator[Item, None, None]:
    """Iterates over ``function(start)``, ``function(start + 1)``, ... in order and without end.

    Worker threads run at most ``2 * workers`` items ahead. They suit functions that spend their
    time where the interpreter lock is released, as numpy's gathers do, and copy nothing between
    processes. An exception of ``function`` is raised where its item would have come. The
    workers end when the iterator is closed, dropped or has raised.

    Args:
        function: must be pure, or at least safe to call from several threads at once.
        start: the first argument.
        workers: the number of threads; with 0 items are computed when they are asked for.
    """
    if workers == 0:
        return (function(index) for index in count(start))
    return _prefetched(function, start, workers)


def _prefetched(
    function: Callable[[int], Item], start: int, workers: int
) -> Generator[Item, None, None]:
    executor = ThreadPoolExecutor(workers, thread_name_prefix="metasparse-data")
    try:
        pending: deque[Future[Item]] = deque()
        for index in count(start):
            pending.append(executor.submit(function, index))
            if len(pending) > _AHEAD_PER_WORKER * workers:
                yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
