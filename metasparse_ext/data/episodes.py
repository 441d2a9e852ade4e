"""N-way K-shot tasks without end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from metasparse_ext._arguments import require, require_count, require_type
from metasparse_ext.data.batch import TaskBatch
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.mixture import Mixture, MixtureSampler
from metasparse_ext.data.options import MOST
from metasparse_ext.data.prefetch import prefetch
from metasparse_ext.data.registry import load
from metasparse_ext.data.sampler import EpisodeSampler, check_task

_MOST_WORKERS = 1024


def episodes(
    data: ImageClasses | Mixture | str,
    root: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    ways: int,
    shots: int,
    queries: int,
    tasks: int,
    seed: int = 0,
    workers: int = 0,
    start: int = 0,
    rotations: bool = False,
    every_set: bool = False,
) -> Iterator[TaskBatch]:
    """Draws batches of N-way K-shot tasks without end.

    Batch i depends on (seed, split, i) alone (see ``EpisodeSampler``): a run that stopped after
    n batches resumes with ``start=n``, the number of workers does not matter, and a fixed
    evaluation set is the first batches of a seed.

    Args:
        data: classes to draw from, several data sets (see ``MixtureSampler``), or the name of
            either for ``load``.
        root: the folder of a data set given by name.
        split: of a data set given by name, ``"train"`` by default; of classes, if given, the one
            they must be of.
        ways: N, classes per task.
        shots: K, support images per class.
        queries: query images per class.
        tasks: T, tasks per batch.
        seed: at least 0.
        workers: threads that draw batches ahead; 0 draws each when it is asked for.
        start: number of the first batch.
        rotations: random multiples of 90 degrees per class per task.
        every_set: task n has the n-th of all sets of ``ways`` classes, instead of drawn ones; of
            one data set only.

    Returns:
        An iterator of batches with images (T, ways * K, C, H, W) float32 in [0, 1] and labels
        (T, ways * K) int64; of a mixture, also with the distribution (T,) of each task.

    Raises:
        DataError: a ValueError; data that cannot be loaded, or that are too few for such tasks.
        ValueError: a number is too small.
        TypeError: a number is not an integer.
    """
    expected = "classes, a mixture of them, or the name of a data set"
    require_type("episodes", "data", data, (ImageClasses, Mixture, str), expected)
    if split is not None:
        require_type("episodes", "split", split, str, "the name of a split")
    if root is not None:
        require_type("episodes", "root", root, (str, os.PathLike), "a path")
    flags = {"rotations": rotations, "every_set": every_set}
    check_task("episodes", ways, shots, queries, tasks, seed, **flags)
    require_count("episodes", "workers", workers, most=_MOST_WORKERS)
    require_count("episodes", "start", start, most=MOST)
    if isinstance(data, str):
        data = load(data, root, split or "train")
    elif split not in (None, data.split):
        raise DataError(f"episodes: expected data to be of split {split!r}, got {data}")
    task: dict[str, Any] = {
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "tasks": tasks,
        "seed": seed,
        "rotations": rotations,
    }
    if isinstance(data, Mixture):
        expected = f"False, {data} has no sets of classes across its data sets"
        require(every_set is False, "episodes", "every_set", expected, every_set)
        return prefetch(MixtureSampler(data, **task).__getitem__, start, workers)
    sampler = EpisodeSampler(data, **task, every_set=every_set)
    return prefetch(sampler.__getitem__, start, workers)
