"""N-way K-shot tasks drawn from one data set, reproducibly."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

from metasparse_ext._arguments import require_count, require_flag, require_type
from metasparse_ext.data.batch import Samples, TaskBatch
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.images import ImageClasses, require_memory
from metasparse_ext.data.options import MOST


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
        every_set: task n has the n-th of all sets of ``ways`` classes, in the order of their
            numbers and from the first set again after the last one: there are
            :attr:`sets`. By default the classes of a task are drawn.
        length: how many batches there are; without end if None. ``torch.utils.data.DataLoader``
            needs one: ``DataLoader(sampler, batch_size=None, num_workers=2, pin_memory=True)``
            gives the batches in order, and ``batch_size=B`` joins the tasks of B of them.

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
        every_set: bool = False,
        length: int | None = None,
    ) -> None:
        require_type("EpisodeSampler", "data", data, ImageClasses, "an ImageClasses")
        flags = {"rotations": rotations, "every_set": every_set}
        check_task("EpisodeSampler", ways, shots, queries, tasks, seed, **flags)
        if length is not None:
            require_count("EpisodeSampler", "length", length, most=MOST)
        self.data, self.length = data, length
        self.ways, self.shots, self.queries, self.tasks = ways, shots, queries, tasks
        self.rotations, self.every_set = rotations, every_set
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
        drawn = self.tasks * self.ways * images
        require_memory(str(data), "tasks", (drawn, *data.shape), bytes=4)
        if self.rotations and data.shape[1] != data.shape[2]:
            raise DataError(
                f"{data}: rotations need square images, these are "
                f"{data.shape[1]}x{data.shape[2]}; image_size makes them square"
            )

    @property
    def sets(self) -> int:
        """The number of sets of ``ways`` classes."""
        return math.comb(len(self.data), self.ways)

    def __len__(self) -> int:
        """The number of batches.

        Raises:
            TypeError: there is no end.
        """
        return finite(self.length)

    def __getitem__(self, index: int) -> TaskBatch:
        """Draws batch ``index``, at least 0.

        Raises:
            IndexError: past the last one.
        """
        return self.draw(self.numbers(index))

    def numbers(self, index: int) -> np.ndarray:
        """(T,) the numbers of the tasks of batch ``index``."""
        require_count("EpisodeSampler", "index", index, most=MOST)
        if self.length is not None and index >= self.length:
            raise IndexError(f"EpisodeSampler: batch {index} of {self.length}")
        return np.arange(index * self.tasks, (index + 1) * self.tasks)

    def draw(self, numbers: np.ndarray) -> TaskBatch:
        """Draws the tasks of these numbers."""
        rows, turns = self._drawn(numbers)
        images = self.data.images[rows]  # (T, ways, shots + queries, C, H, W)
        if self.rotations:
            for turn in (1, 2, 3):
                turned = turns == turn
                images[turned] = np.rot90(images[turned], turn, axes=(-2, -1))
        return TaskBatch(
            support=self._samples(images[:, :, : self.shots]),
            query=self._samples(images[:, :, self.shots :]),
        )

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """(T, ways, shots + queries): which rows of ``data.images`` the tasks of numbers have.

        Those of the support set come first.
        """
        return self._drawn(numbers)[0]

    def _drawn(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        draws = [self._draw(int(number)) for number in numbers]
        rows, turns = (np.stack(parts) for parts in zip(*draws, strict=True))
        return rows, turns

    def _draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ``data.images`` (ways, shots + queries) and quarter turns (ways,) of a task."""
        # The counter's high words are the task's number, so that tasks are 2^128 values apart.
        counter = np.array([0, 0, number, 0], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
        order = rng.random(len(self.data))
        if self.every_set:
            members = nth_set(len(self.data), self.ways, number % self.sets)
            classes = members[np.argsort(order[members])]
        else:
            classes = _smallest(order, self.ways)
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
        # Pixels come from NumPy: the labels lie beside them, whatever torch's default device is.
        labels = torch.arange(ways, device="cpu").repeat_interleave(each).repeat(tasks, 1)
        return Samples(
            torch.from_numpy(pixels.reshape(tasks, ways * each, *images.shape[3:])), labels
        )


def nth_set(count: int, size: int, number: int) -> np.ndarray:
    """(size,) the rising numbers of the set of this place among those of ``count`` things.

    The sets are in lexicographic order, as ``itertools.combinations`` gives them.
    """
    members: list[int] = []
    for thing in range(count):
        left = size - len(members)
        if left == 0:
            break
        # those that go on with this thing come before those without it
        with_it = math.comb(count - thing - 1, left - 1)
        if number < with_it:
            members.append(thing)
        else:
            number -= with_it
    return np.array(members)


def check_task(
    owner: str, ways: int, shots: int, queries: int, tasks: int, seed: int, **flags: bool
) -> None:
    """Refuses numbers that no task can have, and flags that are none."""
    numbers = {"ways": ways, "shots": shots, "queries": queries, "tasks": tasks}
    for argument, value in numbers.items():
        require_count(owner, argument, value, least=1, most=MOST)
    require_count(owner, "seed", seed)
    for argument, flag in flags.items():
        require_flag(owner, argument, flag)


def finite(length: int | None) -> int:
    """The length of a sequence of batches, if it ends."""
    if length is None:
        raise TypeError("EpisodeSampler: it has no end; expected length to be a number for a len()")
    return length


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` smallest of the last axis, in rising order of value.

    Of independent uniform values they are a random sample in random order.
    """
    found = np.argpartition(values, count - 1, axis=-1)[..., :count]
    order = np.argsort(np.take_along_axis(values, found, axis=-1), axis=-1)
    return np.take_along_axis(found, order, axis=-1)
