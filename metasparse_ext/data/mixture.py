"""Several data sets at once: batches whose tasks come from all of them in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metasparse_ext._arguments import require_choice, require_count, require_type
from metasparse_ext.data.batch import Samples, TaskBatch
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.options import LARGEST_SIDE, MOST
from metasparse_ext.data.sampler import EpisodeSampler, finite


@dataclass(frozen=True, eq=False, repr=False)
class Mixture:
    """One split of several data sets, their images of one shape.

    Attributes:
        parts: the data sets; a task of ``parts[d]`` has distribution d.

    Raises:
        DataError: fewer than two parts, or parts of the same name, other splits or other shapes.
    """

    parts: tuple[ImageClasses, ...]

    def __post_init__(self) -> None:
        require_type("Mixture", "parts", self.parts, (list, tuple), "several ImageClasses")
        for part in self.parts:
            require_type("Mixture", "parts", part, ImageClasses, "several ImageClasses")
        if len(self.parts) < 2:
            count = len(self.parts)
            raise DataError(f"Mixture: expected parts to be two data sets or more, got {count}")
        if len(set(self.names)) < len(self.names):
            names = ", ".join(self.names)
            raise DataError(f"Mixture: expected parts to be different data sets, got {names}")
        for part in self.parts:
            if (part.split, part.shape) != (self.split, self.shape):
                raise DataError(
                    f"{part}: a mixture takes images of one split and one shape, got shape "
                    f"{part.shape}, and {self.shape} of {self.parts[0]}"
                )

    @classmethod
    def of(
        cls,
        parts: Sequence[ImageClasses],
        *,
        image_size: int | None = None,
        channels: int | None = None,
    ) -> Mixture:
        """Brings data sets to one shape: by default to the largest side and the most channels."""
        require_type("Mixture.of", "parts", parts, (list, tuple), "several ImageClasses")
        for part in parts:
            require_type("Mixture.of", "parts", part, ImageClasses, "several ImageClasses")
        if not parts:
            raise DataError("Mixture.of: expected parts to be two data sets or more, got none")
        if image_size is not None:
            require_count("Mixture.of", "image_size", image_size, least=1, most=LARGEST_SIDE)
        if channels is not None:
            require_count("Mixture.of", "channels", channels)
            require_choice("Mixture.of", "channels", channels, (1, 3))
        shapes = {part.shape for part in parts}
        if image_size is None and len({shape[1:] for shape in shapes}) > 1:
            image_size = max(side for shape in shapes for side in shape[1:])
        if image_size is not None:
            parts = [part.resized(image_size) for part in parts]
        if channels is None:
            channels = max(shape[0] for shape in shapes)
        return cls(tuple(part.with_channels(channels) for part in parts))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each distribution."""
        return tuple(part.name for part in self.parts)

    @property
    def name(self) -> str:
        """All names, joined by ``+``."""
        return "+".join(self.names)

    @property
    def split(self) -> str:
        """The split that all parts are of."""
        return self.parts[0].split

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.parts[0].shape

    def __str__(self) -> str:
        return f"{self.name}/{self.split}"

    def __repr__(self) -> str:
        return f"<Mixture of {', '.join(map(repr, self.parts))}>"


class MixtureSampler:
    """Random access to batches of tasks from several data sets: ``sampler[i]`` is batch i.

    Task n of the sequence comes from data set ``n mod D``, which draws it as its own
    :class:`~metasparse_ext.data.EpisodeSampler` draws task n. So the promises of that class hold
    here too, and every run of D tasks has one of each data set.

    Args:
        data: the data sets.
        tasks: T, tasks per batch.
        length: how many batches there are; without end if None.
        task: the other arguments of :class:`~metasparse_ext.data.EpisodeSampler`; ``rotations``
            turn the images of all data sets.
    """

    def __init__(
        self, data: Mixture, *, tasks: int, length: int | None = None, **task: Any
    ) -> None:
        require_type("MixtureSampler", "data", data, Mixture, "a Mixture")
        require_count("MixtureSampler", "tasks", tasks, least=1, most=MOST)
        if length is not None:
            require_count("MixtureSampler", "length", length, most=MOST)
        self.tasks, self.length = tasks, length
        self.samplers = [EpisodeSampler(part, tasks=tasks, **task) for part in data.parts]

    def __len__(self) -> int:
        """The number of batches; a TypeError where there is no end."""
        return finite(self.length)

    def __getitem__(self, index: int) -> TaskBatch:
        """Draws batch ``index``, at least 0; an IndexError past the last one."""
        if self.length is not None and index >= self.length:
            raise IndexError(f"MixtureSampler: batch {index} of {self.length}")
        numbers = self.samplers[0].numbers(index)
        sources = numbers % len(self.samplers)
        by_source = np.argsort(sources, kind="stable")
        batches = [self.samplers[d].draw(numbers[sources == d]) for d in np.unique(sources)]
        distribution = torch.from_numpy(sources[by_source])
        joined = TaskBatch(
            _join([batch.support for batch in batches], distribution),
            _join([batch.query for batch in batches], distribution),
        )
        return joined.tasks(torch.from_numpy(np.argsort(by_source)))


def _join(parts: Sequence[Samples], distribution: Tensor) -> Samples:
    images, labels, _ = zip(*parts, strict=True)
    return Samples(torch.cat(images), torch.cat(labels), distribution)
