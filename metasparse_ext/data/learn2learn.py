"""Tasksets of learn2learn as batches of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from metasparse_ext._arguments import refuse, require_count, shown
from metasparse_ext.data.batch import Samples, TaskBatch
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.options import MOST


class Taskset(Protocol):
    """What this module asks of a learn2learn ``Taskset``: nothing of learn2learn is imported."""

    def sample(self) -> tuple[Tensor, Tensor]:
        """The images (n, C, H, W) and labels (n,) of one task."""
        ...


def from_learn2learn(taskset: Taskset, *, shots: int, tasks: int) -> Iterator[TaskBatch]:
    """Draws batches of tasks from a learn2learn taskset without end.

    Of each class of a task the first ``shots`` samples are for the support set and the others for
    the query set, both ordered by label. Which tasks come is the taskset's affair: unlike
    :func:`~metasparse_ext.data.episodes` it draws from global random state.

    Args:
        taskset: a ``learn2learn.data.Taskset`` whose transforms draw at least ``shots + 1`` samples
            a class and number the classes from 0: ``NWays``, ``KShots``, ``LoadData``,
            ``RemapLabels``, ``ConsecutiveLabels``.
        shots: K, support images per class.
        tasks: T, tasks per batch.

    Returns:
        An iterator of batches with the images (T, N, C, H, W) that the taskset gives, bytes divided
        by 255, and labels (T, N) int64.

    Raises:
        DataError: a task has labels with gaps, as without ``RemapLabels``, unequal classes, or too
            few samples; tasks of one batch differ in shape.
        ValueError: shots or tasks is below 1.
    """
    if isinstance(taskset, type) or not callable(getattr(taskset, "sample", None)):
        expected = "a learn2learn Taskset, which has a method sample"
        refuse("from_learn2learn", "taskset", expected, shown(taskset), TypeError)
    for argument, value in (("shots", shots), ("tasks", tasks)):
        require_count("from_learn2learn", argument, value, least=1, most=MOST)
    return _batches(taskset, shots, tasks)


def _batches(taskset: Taskset, shots: int, tasks: int) -> Iterator[TaskBatch]:
    while True:
        drawn = [_by_class(*taskset.sample()) for _ in range(tasks)]
        shapes = {tuple(images.shape) for images in drawn}
        if len(shapes) > 1:
            raise DataError(
                "from_learn2learn: expected tasks of one shape (ways, samples, C, H, W), got "
                f"{sorted(shapes)}"
            )
        images = torch.stack(drawn)
        if images.shape[2] <= shots:
            raise DataError(
                f"from_learn2learn: {shots} shots need at least {shots + 1} samples a class, the "
                f"taskset draws {images.shape[2]}: see KShots"
            )
        yield TaskBatch(_samples(images[:, :, :shots]), _samples(images[:, :, shots:]))


def _by_class(images: Tensor, labels: Tensor) -> Tensor:
    """The images of one task as (ways, samples, C, H, W)."""
    counts = torch.bincount(labels)
    if counts.min() != counts.max():
        raise DataError(
            "from_learn2learn: expected as many samples of every label from 0, got "
            f"{counts.tolist()}: see RemapLabels and ConsecutiveLabels"
        )
    if not images.is_floating_point():
        images = images.float() / 255
    return images[labels.argsort(stable=True)].unflatten(0, (len(counts), -1))


def _samples(images: Tensor) -> Samples:
    """Images (T, ways, K, C, H, W) as samples (T, ways * K, ...)."""
    tasks, ways, each = images.shape[:3]
    labels = torch.arange(ways, device=images.device).repeat_interleave(each)
    return Samples(images.flatten(1, 2), labels.repeat(tasks, 1))
