"""Images grouped by class: the one form that every data set is brought to."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from metasparse_ext._arguments import refuse, require, require_choice, require_count, require_type
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.options import FITS, LARGEST_SIDE, MOST, require_name
from metasparse_ext.data.picture import fitted

_NAMED = 3  # of what was left out, so many are named


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
        notes: what was left out when they were read, in a sentence each.

    Raises:
        DataError: the arrays do not fit together, a class has no images, or two have one name.
    """

    images: np.ndarray
    offsets: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, offsets = self.images, self.offsets
        for name in ("images", "offsets"):
            require_type("ImageClasses", name, getattr(self, name), np.ndarray, "an array")
        for name in ("class_names", "notes"):
            require_texts("ImageClasses", name, getattr(self, name))
        for name in ("name", "split"):
            require_type("ImageClasses", name, getattr(self, name), str, "a text")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                "ImageClasses: expected images to be of shape (n, 1 or 3, H, W) and type uint8, "
                f"got {images.shape} and {images.dtype} in {self}"
            )
        if offsets.shape != (len(self.class_names) + 1,):
            raise DataError(
                f"ImageClasses: expected offsets to be {len(self.class_names) + 1} integers for "
                f"{len(self.class_names)} class_names, got shape {offsets.shape} in {self}"
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
        owner = "ImageClasses.from_labels"
        require_type(owner, "images", images, np.ndarray, "an array")
        require_type(owner, "labels", labels, np.ndarray, "an array of integers")
        require_texts(owner, "class_names", class_names)
        for argument, value in (("name", name), ("split", split)):
            require_type(owner, argument, value, str, "a text")
        fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
        if not fits:
            expected = "of shape (n, H, W) or (n, H, W, 1 or 3)"
            refuse(owner, "images", expected, f"{images.shape} in {name}/{split}", DataError)
        require(len(class_names) > 0, owner, "class_names", "one name or more", class_names)
        _check_labels(owner, f"{name}/{split}", images, labels, len(class_names))
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

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the standard deviation of each channel, of pixels in [0, 1]: (C,) each.

        Those of the training classes are what :class:`~metasparse_ext.data.Normalize` takes.
        """
        values = np.arange(256) / 255
        counts = np.zeros((self.shape[0], 256))
        for images in (self[index] for index in range(len(self))):
            for channel, count in enumerate(counts):
                count += np.bincount(images[:, channel].ravel(), minlength=256)
        weights = counts / counts.sum(axis=1, keepdims=True)
        mean = weights @ values
        variance = (weights * (values - mean[:, np.newaxis]) ** 2).sum(axis=1)
        return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())

    def resized(self, image_size: int, fit: str = "squash") -> ImageClasses:
        """Returns the same classes with square images of ``image_size`` pixels a side.

        Filtered over the area that a new pixel covers (Pillow's bicubic).

        Args:
            image_size: at least 1.
            fit: ``"squash"`` does not keep the aspect ratio of images that are not square;
                ``"crop"`` keeps the largest square in their middle.
        """
        owner = "ImageClasses.resized"
        require_count(owner, "image_size", image_size, least=1, most=LARGEST_SIDE)
        require_name(owner, "fit", fit, FITS)
        if self.shape[1:] == (image_size, image_size):
            return self
        shape = (*self.images.shape[:2], image_size, image_size)
        require_memory(str(self), "image_size", shape)
        resized = np.empty(shape, np.uint8)
        for source, target in zip(self.images, resized, strict=True):
            for channel, plane in enumerate(source):
                target[channel] = fitted(Image.fromarray(plane), image_size, fit)
        return replace(self, images=resized)

    def with_channels(self, channels: int) -> ImageClasses:
        """Returns the same classes as grey (1) or RGB (3) images.

        Grey becomes three equal channels; RGB becomes its ITU-R 601 luma.
        """
        require_count("ImageClasses.with_channels", "channels", channels)
        require_choice("ImageClasses.with_channels", "channels", channels, (1, 3))
        if self.shape[0] == channels:
            return self
        if channels == 3:
            return replace(self, images=np.repeat(self.images, 3, axis=1))
        luma = np.empty(self.images[:, :1].shape, np.uint8)
        for source, target in zip(self.images, luma, strict=True):
            target[...] = in_channels(source, 1)
        return replace(self, images=luma)

    def with_rotations(self) -> ImageClasses:
        """Returns four classes for each: its images turned by 0, 90, 180 and 270 degrees.

        So 1,200 characters of Omniglot become 4,800 classes (Santoro et al., 2016). The turned
        classes are named ``NAME/rot090`` and so on.

        Raises:
            DataError: the images are not square.
        """
        if self.shape[1] != self.shape[2]:
            raise DataError(
                f"{self}: rotations need square images, these are "
                f"{self.shape[1]}x{self.shape[2]}; image_size makes them square"
            )
        images = np.empty((4 * len(self.images), *self.shape), np.uint8)
        names, sizes = [], np.repeat(self.sizes, 4)
        offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        for turned in range(4 * len(self)):
            index, quarters = divmod(turned, 4)
            names.append(self.class_names[index] + (f"/rot{90 * quarters:03}" if quarters else ""))
            part = images[offsets[turned] : offsets[turned + 1]]
            part[...] = np.rot90(self[index], quarters, axes=(-2, -1))
        return replace(self, images=images, offsets=offsets, class_names=tuple(names))

    def with_at_least(self, min_images: int) -> ImageClasses:
        """Returns the classes that have so many images; ``notes`` says how many have not.

        Raises:
            DataError: none has.
        """
        require_count("ImageClasses.with_at_least", "min_images", min_images, least=1, most=MOST)
        kept = np.flatnonzero(self.sizes >= min_images)
        if len(kept) == len(self):
            return self
        if not len(kept):
            raise DataError(
                f"{self}: no class has {min_images} images, the largest has {self.sizes.max()}"
            )
        dropped = [self.class_names[i] for i in np.flatnonzero(self.sizes < min_images)]
        why = f"with fewer than {counted(min_images, 'image')}"
        return replace(
            self,
            images=np.concatenate([self[index] for index in kept]),
            offsets=np.concatenate(([0], np.cumsum(self.sizes[kept], dtype=np.int64))),
            class_names=tuple(self.class_names[index] for index in kept),
            notes=(*self.notes, left_out(dropped, "class", why)),
        )


def in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image (1 or 3, H, W) uint8 in so many channels: grey repeated, RGB as its luma."""
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    red, green, blue = image.astype(np.uint32)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[np.newaxis]


def left_out(names: Sequence[str], what: str, why: str) -> str:
    """A note of what was left out: how many, and the names of the first.

    Args:
        names: theirs.
        what: a kind of thing, such as ``"image"``.
        why: such as ``"that cannot be read"``.
    """
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"left out {counted(len(names), what)} {why}: {shown}"


def counted(number: int, what: str) -> str:
    """So many of a kind of thing: ``"1 image"``, ``"2 classes"``."""
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{number} {what if number == 1 else plural}"


def require_texts(owner: str, argument: str, values: object) -> None:
    """Refuses what is not a sequence of texts, such as one text: its letters would be taken."""
    expected = "a sequence of texts"
    require_type(owner, argument, values, (list, tuple), expected)
    for value in values:  # type: ignore[attr-defined]
        require_type(owner, argument, value, str, expected)


def duplicate(names: Sequence[str]) -> str | None:
    """The first name that comes a second time, if any does."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def require_memory(owner: str, argument: str, shape: tuple[int, ...], *, bytes: int = 1) -> None:
    """Whether the machine has the memory for images of so many bytes a value at all."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return  # The system does not say.
    size = bytes * math.prod(shape)
    if size > memory:
        raise DataError(
            f"{owner}: {argument}: {shape[0]} images of {shape[-2]}x{shape[-1]} need "
            f"{size / 2**30:.0f} GiB, the machine has {memory / 2**30:.0f}"
        )


def _check_labels(
    owner: str, where: str, images: np.ndarray, labels: np.ndarray, classes: int
) -> None:
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        expected = f"an integer for each of {len(images)} images of {where}"
        refuse(owner, "labels", expected, f"{labels.shape} of {labels.dtype}", DataError)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        expected = f"from 0 to {classes - 1}, as class_names are, in {where}"
        refuse(owner, "labels", expected, f"{labels[wrong[0]]} for image {wrong[0]}", DataError)
