"""The batches that learners consume: support and query samples with a leading task axis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """Labelled images of T tasks.

    Attributes:
        images: (T, N, C, H, W) float32 in [0, 1].
        labels: (T, N) int64 in [0, ways).
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Samples:
        """The samples on ``device``; ``non_blocking`` overlaps copies from pinned memory."""
        return Samples(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    def pin_memory(self) -> Samples:
        """The samples in page-locked memory, whence copies to a GPU are asynchronous."""
        return Samples(*(tensor.pin_memory() for tensor in self))


class TaskBatch(NamedTuple):
    """A meta-batch: T tasks, each with samples to adapt on and samples to be judged on."""

    support: Samples
    query: Samples

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> TaskBatch:
        """The batch on ``device``; ``non_blocking`` overlaps copies from pinned memory."""
        return TaskBatch(*(samples.to(device, non_blocking) for samples in self))

    def pin_memory(self) -> TaskBatch:
        """The batch in page-locked memory, whence copies to a GPU are asynchronous."""
        return TaskBatch(*(samples.pin_memory() for samples in self))
