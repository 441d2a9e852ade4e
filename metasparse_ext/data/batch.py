"""The batches that learners consume: support and query samples with a leading task axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.data._utils.collate import default_collate_fn_map

# What a model is given: one input, arguments, or keywords.
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
# Of one input, such as (C, H, W), or of each of several.
InputShape = tuple[int, ...] | tuple[tuple[int, ...], ...] | dict[str, tuple[int, ...]]


class Samples(NamedTuple):
    """Labelled images of T tasks.

    Attributes:
        images: (T, N, C, H, W) float32 in [0, 1]. Networks of one's own may take other inputs (T,
            N, ...) of any dtype, and several: a tuple of arguments, or a dict of keywords.
        labels: (T, N) int64 in [0, ways).
        distribution: (T,) int64, which of several data sets each task was drawn from, or None where
            there is one. It travels with the samples, so that a learner is told when it adapts.
    """

    images: Inputs
    labels: Tensor
    distribution: Tensor | None = None

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Samples:
        """The samples on ``device``; ``non_blocking`` overlaps copies from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Samples:
        """The samples in page-locked memory, whence copies to a GPU are asynchronous."""
        return self._map(Tensor.pin_memory)

    def tasks(self, chosen: slice | Tensor) -> Samples:
        """The samples of some of the tasks."""
        return self._map(lambda tensor: tensor[chosen])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Samples:
        return Samples(*(tree_map_only(Tensor, function, part) for part in self))


class TaskBatch(NamedTuple):
    """A meta-batch: T tasks, each with samples to adapt on and samples to be judged on."""

    support: Samples
    query: Samples

    @property
    def distribution(self) -> Tensor | None:
        """(T,) int64, which of several data sets each task was drawn from, if there are several."""
        return self.support.distribution

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> TaskBatch:
        """The batch on ``device``; ``non_blocking`` overlaps copies from pinned memory."""
        return TaskBatch(*(samples.to(device, non_blocking) for samples in self))

    def pin_memory(self) -> TaskBatch:
        """The batch in page-locked memory, whence copies to a GPU are asynchronous."""
        return TaskBatch(*(samples.pin_memory() for samples in self))

    def tasks(self, chosen: slice | Tensor) -> TaskBatch:
        """Some of the tasks, by a slice or an index (K,)."""
        return TaskBatch(*(samples.tasks(chosen) for samples in self))


def input_shape(images: Inputs) -> InputShape:
    """The shape of what a model is given of one sample, of inputs (T, N, ...)."""
    return tree_map_only(Tensor, lambda each: tuple(each.shape[2:]), images)


def input_dtype(images: Inputs) -> Any:
    """Of what a model is given, each input's dtype, or None of real numbers: those of the model."""
    return tree_map_only(
        Tensor, lambda each: None if each.is_floating_point() else each.dtype, images
    )


def is_one_input(shape: InputShape) -> TypeGuard[tuple[int, ...]]:
    """Whether a shape is that of one input."""
    return isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)


def is_image(shape: InputShape | None) -> TypeGuard[tuple[int, int, int]]:
    """Whether a shape is (C, H, W)."""
    return shape is not None and is_one_input(shape) and len(shape) == 3


def read_shape(said: Any) -> InputShape:
    """A shape as JSON has it, with lists in the place of tuples."""
    if isinstance(said, dict):
        return {name: tuple(each) for name, each in said.items()}
    return tuple(tuple(each) if isinstance(each, list) else each for each in said)


def _collate(parts: Sequence[Samples], *, collate_fn_map: object = None) -> Samples:
    """Joins the tasks of several batches, for ``torch.utils.data.DataLoader``."""
    distributions = [part.distribution for part in parts if part.distribution is not None]
    return Samples(
        tree_map(lambda *images: torch.cat(images), *(part.images for part in parts)),
        torch.cat([part.labels for part in parts]),
        torch.cat(distributions) if distributions else None,
    )


# torch's way to say how a type is collated: its own would stack the batches in a new axis.
default_collate_fn_map[Samples] = _collate
