"""N-way K-shot tasks drawn from a data set, reproducibly."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from numbers import Integral

import numpy as np
import torch

from metasparse_ext.data.batch import Samples, TaskBatch
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.prefetch import prefetch
from metasparse_ext.data.registry import load


class EpisodeSampler:
    """Random access to an endless sequence of batches of tasks: ``sampler[i]`` is batch i.

    Task n of the sequence is drawn from a counter-based generator at (seed, split, n), and batch
    i holds tasks ``i * tasks`` to ``(i + 1) * tasks``. So a batch depends on nothing that happened
    before, any thread may draw it, and a set of 600 evaluation tasks is the same however it is cut
    into batches.

    A task has ``ways`` distinct classes in random order, which number its labels, and ``shots +
    queries`` distinct images of each. Samples are ordered by label.

    Args:
        data: the classes to draw from.
        ways: N, classes per task.
        shots: K, support images per class.
        queries: query images per class.
        tasks: T, tasks per batch.
        seed: at least 0.
        rotations: turn the images of each class of each task by one random multiple of 90
            degrees, which makes four classes of every character (Santoro et al., 2016; usual
            for training on Omniglot).

    Raises:
        DataError: the data have too few classes, or a class too few images; images that are not
            square cannot be rotated.
        ValueError: a number is too small.
        TypeError: a number is not an integer.
    """

    def __init__(
        self,
        data: ImageClasses,
        *,
        ways: int,
        shots: int,
        queries: int,
        tasks: int,
        seed: int = 0,
        rotations: bool = False,
    ) -> None:
        numbers = {"ways": ways, "shots": shots, "queries": queries, "tasks": tasks}
        for argument, value in numbers.items():
            _check_at_least(argument, value, 1)
        _check_at_least("seed", seed, 0)
        self.data = data
        self.ways, self.shots, self.queries, self.tasks = ways, shots, queries, tasks
        self.rotations = rotations
        self._check_enough()
        entropy = [seed, zlib.crc32(data.split.encode())]
        self._key = np.random.SeedSequence(entropy).generate_state(2, np.uint64)

    def _check_enough(self) -> None:
        data, images = self.data, self.shots + self.queries
        if len(data) < self.ways:
            raise DataError(
                f"{data}: {self.ways}-way tasks need {self.ways} classes, there are {len(data)}"
            )
        fewest = int(data.sizes.argmin())
        if data.sizes[fewest] < images:
            raise DataError(
                f"{data}: {self.shots} shots and {self.queries} queries need {images} images of "
                f"every class, there are {data.sizes[fewest]} of {data.class_names[fewest]!r}"
            )
        if self.rotations and data.shape[1] != data.shape[2]:
            raise DataError(
                f"{data}: rotations need square images, these are "
                f"{data.shape[1]}x{data.shape[2]}; image_size makes them square"
            )

    def __getitem__(self, index: int) -> TaskBatch:
        """Draws batch ``index``, at least 0."""
        _check_at_least("index", index, 0)
        first = index * self.tasks
        draws = [self._draw(number) for number in range(first, first + self.tasks)]
        rows, turns = (np.stack(parts) for parts in zip(*draws, strict=True))
        images = self.data.images[rows]  # (T, ways, shots + queries, C, H, W)
        if self.rotations:
            for turn in (1, 2, 3):
                turned = turns == turn
                images[turned] = np.rot90(images[turned], turn, axes=(-2, -1))
        return TaskBatch(
            support=self._samples(images[:, :, : self.shots]),
            query=self._samples(images[:, :, self.shots :]),
        )

    def _draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ``data.images`` (ways, shots + queries) and quarter turns (ways,) of a task."""
        # The counter's high words are the task's number, so that tasks are 2^128 values apart.
        counter = np.array([0, 0, number, 0], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
        classes = _smallest(rng.random(len(self.data)), self.ways)
        sizes = self.data.sizes[classes]
        ranks = rng.random((self.ways, sizes.max()))
        ranks[np.arange(sizes.max()) >= sizes[:, np.newaxis]] = np.inf
        images = _smallest(ranks, self.shots + self.queries)
        turns = rng.integers(4, size=self.ways)
        return self.data.offsets[classes][:, np.newaxis] + images, turns

    def _samples(self, images: np.ndarray) -> Samples:
        """Images (T, ways, K, C, H, W) uint8 as samples (T, ways * K, ...)."""
        tasks, ways, each = images.shape[:3]
        pixels = np.divide(images, np.float32(255), dtype=np.float32)
        labels = torch.arange(ways).repeat_interleave(each).repeat(tasks, 1)
        return Samples(
            torch.from_numpy(pixels.reshape(tasks, ways * each, *images.shape[3:])), labels
        )


def episodes(
    data: ImageClasses | str,
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
) -> Iterator[TaskBatch]:
    """Draws batches of N-way K-shot tasks without end.

    Batch i depends on (seed, split, i) alone (see ``EpisodeSampler``): a run that stopped after
    n batches resumes with ``start=n``, the number of workers does not matter, and a fixed
    evaluation set is the first batches of a seed.

    Args:
        data: classes to draw from, or the name of a data set for ``load``.
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

    Returns:
        An iterator of batches with images (T, ways * K, C, H, W) float32 in [0, 1] and labels
        (T, ways * K) int64.

    Raises:
        DataError: a ValueError; data that cannot be loaded, or that are too few for such tasks.
        ValueError: a number is too small.
        TypeError: a number is not an integer.
    """
    if isinstance(data, str):
        data = load(data, root, split or "train")
    elif split not in (None, data.split):
        raise DataError(f"expected classes of split {split!r}, got {data}")
    _check_at_least("workers", workers, 0)
    _check_at_least("start", start, 0)
    sampler = EpisodeSampler(
        data,
        ways=ways,
        shots=shots,
        queries=queries,
        tasks=tasks,
        seed=seed,
        rotations=rotations,
    )
    return prefetch(sampler.__getitem__, start, workers)


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` smallest of the last axis, in rising order of value.

    Of independent uniform values they are a random sample in random order.
    """
    found = np.argpartition(values, count - 1, axis=-1)[..., :count]
    order = np.argsort(np.take_along_axis(values, found, axis=-1), axis=-1)
    return np.take_along_axis(found, order, axis=-1)


def _check_at_least(argument: str, value: int, least: int) -> None:
    if not isinstance(value, Integral):
        raise TypeError(f"episodes: {argument}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"episodes: {argument}: expected at least {least}, got {value}")
