"""Random changes of images, and their normalization, on whole batches where they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metasparse_ext._arguments import (
    refuse,
    require,
    require_count,
    require_flag,
    require_number,
    require_type,
    shown,
)
from metasparse_ext.data.batch import TaskBatch
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.options import MOST

_WORDS = {"true": True, "false": False}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Changes every image of a batch at random, on the device that holds it.

    In this order: a crop at a random place after ``padding`` zeros are put around, a horizontal
    flip with probability 1/2, factors on brightness, contrast and saturation, a turn by a random
    multiple of 90 degrees. Each image is changed by itself, those of one class differently.

    Attributes:
        padding: zeros on each side before the crop to the size that the image had.
        flip: whether to flip.
        brightness: factors are drawn from 1 - brightness to 1 + brightness, as of the next two;
            values are then brought to [0, 1].
        contrast: how far from the mean grey of the image.
        saturation: how far from grey, of RGB images.
        rotate: whether to turn; images must be square.
        query: whether to change the query set too, or the support set alone.
    """

    padding: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    rotate: bool = False
    query: bool = True

    def __post_init__(self) -> None:
        require_count("Augment", "padding", self.padding, most=1 << 15)
        for name in ("brightness", "contrast", "saturation"):
            require_number("Augment", name, getattr(self, name), least=0, most=1)
        for name in ("flip", "rotate", "query"):
            require_flag("Augment", name, getattr(self, name))

    def __call__(self, batch: TaskBatch, generator: torch.Generator | None = None) -> TaskBatch:
        """The batch with its images changed.

        Args:
            batch: images (T, N, C, H, W) floating point in [0, 1], not normalized yet.
            generator: of the device of the images; by default the device's own.
        """
        support, query = _require_batch("Augment", batch)
        if generator is not None:
            kind = torch.Generator
            require_type("Augment", "generator", generator, kind, "a torch.Generator or None")
        changed = batch.support._replace(images=self._changed(support, generator))
        if not self.query:
            return batch._replace(support=changed)
        return TaskBatch(changed, batch.query._replace(images=self._changed(query, generator)))

    def _changed(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        flat = images.flatten(0, 1)

        def draw(low: float, high: float) -> Tensor:
            """(B,) uniform numbers."""
            drawn = torch.rand(len(flat), generator=generator, device=flat.device)
            return low + (high - low) * drawn

        if self.padding:
            flat = _cropped(flat, self.padding, draw)
        if self.flip:
            flat = torch.where((draw(0, 1) < 0.5)[:, None, None, None], flat.flip(-1), flat)
        flat = self._jittered(flat, draw)
        if self.rotate:
            flat = _turned(flat, draw(0, 4).long().clamp(max=3))
        return flat.unflatten(0, images.shape[:2])

    def _jittered(self, images: Tensor, draw: Callable[[float, float], Tensor]) -> Tensor:
        for strength, origin in (
            (self.brightness, lambda x: torch.zeros_like(x[:, :1])),
            (self.contrast, lambda x: _grey(x).mean((-2, -1), keepdim=True)),
            (self.saturation, _grey),
        ):
            if strength:
                factor = draw(1 - strength, 1 + strength).to(images.dtype)[:, None, None, None]
                zero = origin(images)
                images = (zero + factor * (images - zero)).clamp(0, 1)
        return images


def augment_of(owner: str, name: str, got: object) -> Augment:
    """Reads changes from a text such as "padding=4,flip,brightness=0.4,query=false".

    Raises:
        TypeError: If it is no text.
        ValueError: If it names no change, one that there is not, or one twice, or a value of
            another kind or out of range.
    """
    kinds: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(Augment)}
    flags = [each for each, default in kinds.items() if isinstance(default, bool)]
    wanted = (
        f"some of {', '.join(f'{e}=true|false' if e in flags else f'{e}=NUMBER' for e in kinds)}"
    )
    require_type(owner, name, got, str, f"a text, {wanted}")
    values: dict[str, Any] = {}
    for part in str(got).split(","):
        key, equals, text = (each.strip() for each in part.partition("="))
        if key in flags and not equals:
            text = "true"
        if key not in kinds or key in values or (key in flags and text not in _WORDS):
            refuse(owner, name, wanted, shown(got))
        try:
            values[key] = _WORDS[text] if key in flags else type(kinds[key])(text)
        except ValueError:
            refuse(owner, name, wanted, shown(got))
    try:
        return Augment(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{owner}: expected {name} to be {wanted}, got {got!r}: {error}"
        ) from error


@dataclass(frozen=True)
class Normalize:
    """Subtracts a mean from every channel and divides by a standard deviation.

    Attributes:
        mean: one number per channel.
        std: one number above 0 per channel; ``ImageClasses.statistics`` measures both.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            expected = "a list of a number for each channel"
            require_type("Normalize", name, values, (list, tuple), expected)
            require(len(values) in (1, 3), "Normalize", name, "1 or 3 numbers", values)
            for value in values:
                require_number("Normalize", name, value, above=0 if name == "std" else None)
        require(len(self.mean) == len(self.std), "Normalize", "std", "as long as mean", self.std)

    def __call__(self, batch: TaskBatch) -> TaskBatch:
        """The batch with images (T, N, C, H, W) normalized, of the same dtype and device."""
        images = map(self._normalized, _require_batch("Normalize", batch))
        parts = zip(batch, images, strict=True)
        return TaskBatch(*(part._replace(images=each) for part, each in parts))

    def _normalized(self, images: Tensor) -> Tensor:
        if images.shape[2] != len(self.mean):
            raise DataError(
                f"Normalize: expected batch to be of {len(self.mean)} channels, as mean and std, "
                f"got {images.shape[2]}"
            )
        mean = images.new_tensor(self.mean)[:, None, None]
        return (images - mean) / images.new_tensor(self.std)[:, None, None]


def augmented(
    batches: Iterable[TaskBatch], augment: Augment, *, seed: int = 0, start: int = 0
) -> Iterator[TaskBatch]:
    """Changes each of a sequence of batches, reproducibly.

    The changes of a batch depend on the seed and its number alone, so that training goes on where
    it stopped; they differ between kinds of devices.

    Args:
        batches: such as :func:`~metasparse_ext.data.on_device` gives.
        augment: what to change.
        seed: at least 0.
        start: the number of the first batch.
    """
    require_type("augmented", "batches", batches, Iterable, "batches to iterate over")
    require_type("augmented", "augment", augment, Augment, "an Augment")
    require_count("augmented", "seed", seed)
    require_count("augmented", "start", start, most=MOST)
    return _augmented(batches, augment, seed, start)


def _augmented(
    batches: Iterable[TaskBatch], augment: Augment, seed: int, start: int
) -> Iterator[TaskBatch]:
    for number, batch in enumerate(batches, start):
        generator = torch.Generator(batch.support.labels.device)
        # The generator of the CPU takes 32 bits of a seed: both numbers are mixed into them.
        mixed = np.random.SeedSequence([seed, number]).generate_state(1)
        yield augment(batch, generator.manual_seed(int(mixed[0])))


def _require_batch(owner: str, batch: object) -> list[Tensor]:
    """The images of both parts."""
    if not isinstance(batch, TaskBatch):
        refuse(owner, "batch", "a TaskBatch", shown(batch), TypeError)
    images = []
    for part in batch:
        if not isinstance(part.images, Tensor) or part.images.ndim != 5:
            refuse(owner, "batch", "of images (T, N, C, H, W)", shown(part.images))
        if not part.images.is_floating_point():
            refuse(owner, "batch", "of floating-point images", shown(part.images), TypeError)
        images.append(part.images)
    return images


def _cropped(images: Tensor, padding: int, draw: Callable[[float, float], Tensor]) -> Tensor:
    """Images (B, C, H, W) cut, each at its own place, from those with zeros around them."""
    height, width = images.shape[-2:]
    places = 2 * padding + 1
    top, left = (draw(0, places).long().clamp(max=places - 1) for _ in range(2))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    padded = F.pad(images, (padding,) * 4).movedim(1, -1)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _grey(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as grey ones (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def _turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Images (B, C, S, S) turned, each by its own number of quarters."""
    if images.shape[-2] != images.shape[-1]:
        raise DataError(
            "Augment: expected batch to be of square images, as rotate turns them, "
            f"got {images.shape[-2]}x{images.shape[-1]}"
        )
    for turn in (1, 2, 3):
        chosen = (quarters == turn)[:, None, None, None]
        images = torch.where(chosen, images.rot90(turn, (-2, -1)), images)
    return images
