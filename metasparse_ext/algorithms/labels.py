"""The labels that learners accept."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from metasparse_ext._capture import observed

if TYPE_CHECKING:
    from metasparse_ext.data import Samples, TaskBatch

# Labels that were found to be classes, with their version and the number of classes then.
_passed: MutableMapping[Tensor, tuple[int, int]] = WeakTensorKeyDictionary()

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_batch(owner: str, batch: TaskBatch) -> None:
    """:func:`check_samples` of both sets of a meta-batch; they must hold as many tasks.

    Raises:
        ValueError: as there, or for another number of tasks.
    """
    check_samples(owner, "support", batch.support)
    check_samples(owner, "query", batch.query)
    support, query = len(batch.support.labels), len(batch.query.labels)
    if support != query:
        raise ValueError(
            f"{owner}: query.labels must have T = {support} tasks like the support set, got {query}"
        )


def check_samples(owner: str, argument: str, samples: Samples) -> None:
    """Whether there is a class for every image: integer labels (T, N) for images (T, N, ...).

    Values are looked at where the host may (:func:`observed`). That none is below 0 is seen here,
    before the network has said how many classes there are; :func:`check_classes` sees the rest.

    Raises:
        ValueError: if the labels have another shape or type, or one is below 0.
    """
    images, labels = samples.images, samples.labels
    if labels.dtype not in _INTEGERS:
        raise ValueError(f"{owner}: {argument}.labels must be integers, got {labels.dtype}")
    if labels.dim() != 2 or labels.shape != images.shape[:2]:
        raise ValueError(
            f"{owner}: {argument}.labels must be (T, N) = {tuple(images.shape[:2])} like the "
            f"images, got {tuple(labels.shape)}"
        )
    if observed():
        _refuse(labels < 0, labels, f"{owner}: {argument}.labels", "at least 0")


def check_classes(labels: Tensor, ways: int) -> None:
    """Whether labels (T, N) are classes of a network with so many outputs, where the host may look.

    A tensor that has passed is not looked at again until it is written to: an inner loop asks at
    every step.

    Raises:
        ValueError: if one is outside 0 to ways - 1.
    """
    if not observed():
        return
    state = None if labels.is_inference() else (labels._version, ways)
    if state is not None and _passed.get(labels) == state:
        return
    _refuse((labels < 0) | (labels >= ways), labels, "labels", f"0 to {ways - 1}")
    if state is not None:
        _passed[labels] = state


def _refuse(wrong: Tensor, labels: Tensor, what: str, expected: str) -> None:
    if not bool(wrong.any()):
        return
    task, image = wrong.nonzero()[0].tolist()
    raise ValueError(
        f"{what}: expected {expected}, got {labels[task, image].item()} in task {task}"
    )
