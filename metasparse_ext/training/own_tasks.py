"""Data of one's own: image classes, arrays, or meta-batches, of one split at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from metasparse_ext import _entries
from metasparse_ext._arguments import refuse, require, require_tensor, typed
from metasparse_ext.algorithms.samples import named_inputs
from metasparse_ext.data import DataError, ImageClasses, Mixture, Samples, TaskBatch, from_arrays
from metasparse_ext.data.batch import input_shape
from metasparse_ext.data.prefetch import prefetch

if TYPE_CHECKING:
    from metasparse_ext.training.config import RunConfig

_KINDS = (
    "ImageClasses, arrays (images, labels), or meta-batches: a list, a sampler with [index], or "
    "anything to iterate over"
)


class OwnTasks:
    """Meta-batches of one's own, of one split.

    Args:
        name: Of the data, for messages.
        split: The split.
        make: From the seed and the number of the first batch to batches, and how many of them come
            before that one.
        tasks: How many tasks a batch for training has.

    Attributes:
        shape: Of one input, such as (C, H, W), or of each of several, in a tuple or a dict.
        outputs: How many numbers are to be predicted, or None where labels are classes.

    Raises:
        DataError: If there is no batch.
        TypeError, ValueError: If a batch is none.
    """

    def __init__(
        self, name: str, split: str, make: Callable[[int, int], tuple[Any, int]], tasks: int
    ) -> None:
        self.name, self.split, self._make, self._tasks = name, split, make, tasks
        batches = self._batches(*make(0, 0), workers=0, random=_Random(0))
        first = next(batches, None)
        if first is None:
            raise DataError(f"{self}: expected meta-batches, got none")
        self._first = len(first.support.labels)
        self.shape = input_shape(first.support.images)
        labels = first.support.labels
        targets = labels.is_floating_point()
        self.outputs = math.prod(labels.shape[2:]) if targets else None
        self.labels = str(labels.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name}/{self.split}"

    def batches(self, seed: int, start: int, workers: int, *, endless: bool) -> Iterator[TaskBatch]:
        """The meta-batches from number ``start`` on.

        Args:
            seed: Of the tasks, for a function that asks for it.
            start: How many batches to leave out.
            workers: Threads that draw ahead, from a sampler.
            endless: Begin again at the end, as training does, which asks for batches of as many
                tasks as it was told.

        Raises:
            DataError: If training has come to the end of what cannot begin again.
            TypeError, ValueError: If a batch is none, or has another number of tasks.
        """
        random = _Random(seed)
        with random:
            value, skipped = self._make(seed, start)
        if not endless:
            return self._batches(value, skipped, workers, random)
        return self._endless(value, skipped, workers, random)

    def require_tasks(self, seed: int, tasks: int) -> None:
        """Refuses fewer tasks than a validation takes, of batches whose number is known.

        Raises:
            ValueError: If there are fewer.
        """
        value, _ = self._make(seed, 0)
        length = _length(value)
        if length is None:
            return
        # What is not in memory is counted only where it seems to be too little.
        if length * self._first >= tasks and not isinstance(value, tuple | list):
            return
        found = sum(
            len(batch.support.labels) for batch in self._batches(value, 0, 0, _Random(seed))
        )
        wanted = f"at most {found}, the tasks of {self}"
        require(found >= tasks, "RunConfig", "validation_tasks", wanted, tasks)

    def _endless(
        self, value: Any, skipped: int, workers: int, random: _Random
    ) -> Iterator[TaskBatch]:
        length, done = _length(value), 0
        if length and _is_sampler(value):
            skipped %= length
        while True:
            before = done
            # Of a sampler those are not drawn; what else ends before is begun again.
            at_once = skipped if _is_sampler(value) else 0
            skipped -= at_once
            for batch in self._batches(value, at_once, workers, random):
                done += 1
                if skipped > 0:
                    skipped -= 1
                    continue
                got, wanted = len(batch.support.labels), f"of {self._tasks} tasks, as tasks says"
                require(got == self._tasks, str(self), "each meta-batch", wanted, got)
                yield batch
            if done == before:
                raise DataError(
                    f"{self}: its meta-batches ended after {done}, and training goes on"
                )

    def _batches(
        self, value: Any, skipped: int, workers: int, random: _Random
    ) -> Iterator[TaskBatch]:
        if not _is_sampler(value):
            return itertools.islice(map(self._checked, random.drawn(value)), skipped, None)
        drawn = prefetch(lambda index: self._checked(value[index]), skipped, workers)
        length = _length(value)
        return drawn if length is None else itertools.islice(drawn, max(length - skipped, 0))

    def _checked(self, batch: Any) -> TaskBatch:
        """A meta-batch, also where it is written as two pairs of inputs and targets."""
        where = f"{self}: each meta-batch"
        wanted = "a TaskBatch, or ((inputs, targets), (inputs, targets))"
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            refuse(str(self), "each meta-batch", wanted, typed(batch), TypeError)
        parts = []
        for name, part in zip(("support", "query"), batch, strict=True):
            if not (isinstance(part, tuple | list) and len(part) in (2, 3)):
                refuse(str(self), "each meta-batch", wanted, typed(part), TypeError)
            samples = Samples(*part)
            if isinstance(samples.images, list):  # which is what torch's collate makes of a tuple
                samples = samples._replace(images=tuple(samples.images))
            parts.append(_checked_samples(where, name, samples))
        return TaskBatch(*parts)


def _checked_samples(where: str, name: str, samples: Samples) -> Samples:
    require_tensor(where, f"{name}.labels", samples.labels)
    inputs = named_inputs(f"{name}.images", samples.images)
    require(bool(inputs), where, f"{name}.images", "at least one tensor", samples.images)
    for input_name, each in inputs:
        require_tensor(where, input_name, each)
        lead = tuple(each.shape[:2])
        fits = len(lead) == 2 and samples.labels.shape[:2] == lead
        beside = "" if each is inputs[0][1] else f" like {input_name}"
        require(fits, where, f"{name}.labels", f"(T, N, ...) = {lead}{beside}", samples.labels)
    return samples


class _Random:
    """A random state of torch for data alone, which a ``with`` block draws from.

    What a ``DataLoader`` draws, its seed and its order, would else come from the state that a
    network's Dropout draws from, and a run that goes on would find another.

    Args:
        seed: Where it begins.
    """

    def __init__(self, seed: int) -> None:
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._other = torch.get_rng_state()
        torch.set_rng_state(self._state)

    def __exit__(self, *_: object) -> None:
        self._state = torch.get_rng_state()
        torch.set_rng_state(self._other)

    def drawn(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, each drawn with this state."""
        with self:
            left = iter(batches)
        while True:
            with self:
                batch = next(left, _END)
            if batch is _END:
                return
            yield batch


_END = object()


def tasks_of(given: Any, config: RunConfig, split: str) -> ImageClasses | Mixture | OwnTasks:
    """One split of data of one's own.

    Args:
        given: Data by the name of their split; or a function that returns them, called with those
            of split, seed, start, tasks, ways, shots, queries, image_size and root that its
            parameters name.
        config: The run's configuration.
        split: The split.

    Raises:
        DataError: If there is no such split, or nothing in it.
        TypeError, ValueError: If it is none of the kinds that there are.
    """
    if isinstance(given, Mapping):
        if split not in given:
            there = ", ".join(map(str, given))
            raise DataError(f"data: expected a part {split!r}, got {there}")
        given = given[split]
    if callable(given):
        return _made(given, config, split)
    return _of_value(given, config, split)


def _made(function: Callable[..., Any], config: RunConfig, split: str) -> Any:
    offered = {
        **{"split": split, "seed": config.seed, "start": 0},
        **{name: getattr(config, name) for name in ("tasks", "ways", "shots", "queries")},
        **{name: getattr(config, name) for name in ("image_size", "root")},
    }
    name = f"data {_entries.label(function)}"
    asked = _entries.asked("RunConfig", function, offered)
    first = function(**asked)
    if isinstance(first, ImageClasses | Mixture) or _are_arrays(first):
        require("split" in asked, "RunConfig", name, "a function of split", "one without")
        return _of_value(first, config, split)
    tells = asked.keys() & {"split", "seed"}
    wanted = "a function of split or seed, so that validation has other tasks than training"
    require(bool(tells), "RunConfig", name, wanted, "one of neither")

    def make(seed: int, start: int) -> tuple[Any, int]:
        now = {"seed": seed, "start": start}
        made = function(**{key: now.get(key, value) for key, value in asked.items()})
        _require_batches(made)
        return made, 0 if "start" in asked else start

    return OwnTasks(config.data, split, make, config.tasks)


def _of_value(given: Any, config: RunConfig, split: str) -> Any:
    if _are_arrays(given):
        given = from_arrays(*given, name=config.data.strip("<>"), split=split)
    if isinstance(given, ImageClasses | Mixture):
        if config.image_size is None or isinstance(given, Mixture):
            return given
        return given.resized(config.image_size)
    batches: Any = [given] if isinstance(given, TaskBatch) else given
    _require_batches(batches)
    if not _is_sampler(batches) and iter(batches) is batches:
        if split != "train":
            wanted = "begun anew for every validation: a list, a sampler or a function"
            refuse("Trainer", f"data[{split!r}]", wanted, typed(given), TypeError)
        batches = _Rewound(batches)
    return OwnTasks(config.data, split, lambda _, start: (batches, start), config.tasks)


class _Rewound:
    """An iterator whose first batch is looked at, and comes again."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self._first = batches, list(itertools.islice(batches, 1))

    def __iter__(self) -> Iterator[Any]:
        if self._first:
            yield self._first[0]
            self._first = []
        yield from self._batches


def _require_batches(value: Any) -> None:
    fits = _is_sampler(value) or isinstance(value, Iterable)
    if not fits or isinstance(value, str | bytes | Mapping | Tensor | np.ndarray):
        refuse("RunConfig", "data", _KINDS, typed(value), TypeError)


def _is_sampler(value: Any) -> bool:
    # torch's iterable data sets have an [index] that is not to be used.
    return hasattr(value, "__getitem__") and not isinstance(value, IterableDataset)


def _length(value: Any) -> int | None:
    """How many batches there are, if that is known."""
    try:
        return len(value)
    except TypeError:
        return None


def _are_arrays(value: Any) -> bool:
    kinds = (np.ndarray, Tensor)
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, kinds) for v in value)
