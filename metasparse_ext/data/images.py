"""Images grouped by class: the one form that every data set is brought to."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from metasparse_ext.data.errors import DataError


def check_image_size(image_size: int) -> None:
    """Raises a DataError for a side that no image can have."""
    if image_size < 1:
        raise DataError(f"image_size: expected at least 1, got {image_size}")


@dataclass(frozen=True, eq=False, repr=False)
class ImageClasses:
    """The images of one split of a data set, in memory, sorted by class.

    Images stay bytes until a batch is made of them: a quarter of the memory of float32. Class c
    owns the rows ``offsets[c]`` to ``offsets[c + 1]`` of ``images``.

    Attributes:
        images: (n, C, H, W) uint8, C = 1 (grey) or 3 (RGB).
        offsets: (classes + 1,) int64, rising from 0 to n.
        class_names: one name per class.
        name: the data set, such as ``"omniglot"``.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        DataError: the arrays do not fit together, a class has no images, or two have one name.
    """

    images: np.ndarray
    offsets: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        images, offsets = self.images, self.offsets
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"{self}: expected images of shape (n, 1 or 3, H, W) and type uint8, "
                f"got {images.shape} and {images.dtype}"
            )
        if offsets.shape != (len(self.class_names) + 1,):
            raise DataError(
                f"{self}: expected {len(self.class_names) + 1} offsets for "
                f"{len(self.class_names)} class names, got shape {offsets.shape}"
            )
        if twice := duplicate(self.class_names):
            raise DataError(f"{self}: class_names: expected different names, got {twice!r} twice")
        if offsets[0] != 0 or offsets[-1] != len(images):
            raise DataError(
                f"{self}: expected offsets from 0 to {len(images)}, "
                f"got {offsets[0]} to {offsets[-1]}"
            )
        empty = np.flatnonzero(self.sizes <= 0)
        if empty.size:
            raise DataError(f"{self}: class {self.class_names[empty[0]]!r} has no images")

    @classmethod
    def from_labels(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        *,
        name: str,
        split: str,
    ) -> ImageClasses:
        """Groups labelled images by class; images of one class keep their order.

        Args:
            images: (n, H, W), or channels last (n, H, W, 1 or 3); uint8.
            labels: (n,) integers, indices into ``class_names``.
            class_names: one name per class.
            name: the data set.
            split: the split.

        Raises:
            DataError: labels are not one integer an image, or not indices into ``class_names``,
                which differ.
        """
        _check_labels(f"{name}/{split}", images, labels, len(class_names))
        channels_last = images if images.ndim == 4 else images[..., np.newaxis]
        order = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels, minlength=len(class_names))
        return cls(
            images=np.ascontiguousarray(channels_last[order].transpose(0, 3, 1, 2)),
            offsets=np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))),
            class_names=tuple(class_names),
            name=name,
            split=split,
        )

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def __getitem__(self, index: int) -> np.ndarray:
        """The images of one class, (n, C, H, W) uint8, as a view."""
        index = range(len(self))[index]
        return self.images[self.offsets[index] : self.offsets[index + 1]]

    def __str__(self) -> str:
        return f"{self.name}/{self.split}"

    def __repr__(self) -> str:
        channels, height, width = self.shape
        return (
            f"<ImageClasses {self}: {len(self)} classes, {len(self.images)} images "
            f"of {height}x{width}x{channels}>"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def sizes(self) -> np.ndarray:
        """(classes,) number of images of each class."""
        return np.diff(self.offsets)

    def resized(self, image_size: int) -> ImageClasses:
        """Returns the same classes with square images of ``image_size`` pixels a side.

        Filtered over the area that a new pixel covers (Pillow's bicubic); the aspect ratio of
        images that are not square is not kept.
        """
        check_image_size(image_size)
        if self.shape[1:] == (image_size, image_size):
            return self
        shape = (*self.images.shape[:2], image_size, image_size)
        require_memory(str(self), shape)
        resized = np.empty(shape, np.uint8)
        for source, target in zip(self.images, resized, strict=True):
            for channel, plane in enumerate(source):
                target[channel] = Image.fromarray(plane).resize(
                    (image_size, image_size), Image.Resampling.BICUBIC
                )
        return replace(self, images=resized)

    def with_channels(self, channels: int) -> ImageClasses:
        """Returns the same classes as grey (1) or RGB (3) images.

        Grey becomes three equal channels; RGB becomes its ITU-R 601 luma.
        """
        if channels not in (1, 3):
            raise DataError(f"channels: expected 1 (grey) or 3 (RGB), got {channels}")
        if self.shape[0] == channels:
            return self
        if channels == 3:
            return replace(self, images=np.repeat(self.images, 3, axis=1))
        luma = np.zeros(self.images[:, :1].shape, np.uint32)
        for channel, weight in enumerate((299, 587, 114)):
            luma[:, 0] += weight * self.images[:, channel].astype(np.uint32)
        return replace(self, images=((luma + 500) // 1000).astype(np.uint8))


def duplicate(names: Sequence[str]) -> str | None:
    """The first name that comes a second time, if any does."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def require_memory(owner: str, shape: tuple[int, ...]) -> None:
    """Whether the machine has the memory for so many bytes at all."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return  # The system does not say.
    if math.prod(shape) > memory:
        raise DataError(
            f"{owner}: image_size: {shape[0]} images of {shape[-1]}x{shape[-1]} need "
            f"{math.prod(shape) / 2**30:.0f} GiB, the machine has {memory / 2**30:.0f}"
        )


def _check_labels(owner: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{owner}: expected an integer label for each of {len(images)} images, "
            f"got shape {labels.shape} and type {labels.dtype}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{owner}: expected labels from 0 to {classes - 1}, the class names, "
            f"got {labels[wrong[0]]} for image {wrong[0]}"
        )
