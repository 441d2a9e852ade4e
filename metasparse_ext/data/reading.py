"""Decoding the pictures of a listing, several at once, into one array kept for next time."""

from __future__ import annotations

import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

from metasparse_ext.data import picture, pixel_cache
from metasparse_ext.data.cache import atomic_write
from metasparse_ext.data.errors import DataError, DataNotFoundError
from metasparse_ext.data.images import ImageClasses, counted, left_out, require_memory
from metasparse_ext.data.listing import Classes, Listing
from metasparse_ext.data.options import ReadOptions
from metasparse_ext.data.picture import Picture, UnreadableError
from metasparse_ext.data.prefetch import prefetch

_MOST_WORKERS = 16
_MANY = 2000  # pictures that take long enough for a progress bar

T = TypeVar("T")
Chosen = list[tuple[str, Picture]]


def read_pictures(listing: Listing, options: ReadOptions) -> ImageClasses:
    """Opens what was kept of an earlier time, or decodes the pictures and keeps them.

    Sizes are read from headers before anything is decoded. Images are grey if all of them are,
    else RGB. What was left out is noted, and warned of.

    Args:
        listing: the pictures.
        options: ``image_size``, ``fit``, ``ground``, ``min_images``, ``skip_unreadable`` and
            ``cache`` are heeded here.

    Returns:
        The classes in the order of their names, their images mapped from the file.

    Raises:
        DataError: a picture cannot be read, sizes differ and ``image_size`` is not given, or no
            class is left.
    """
    if not options.cache:
        return _warned(_in_memory(listing, options))
    try:
        path = pixel_cache.path_of(listing, options)
    except DataError as error:  # There is no home folder.
        return _not_kept(listing, options, error)
    kept = pixel_cache.opened(path, listing.name, listing.split)
    if kept is not None:
        return _warned(kept)
    reading = _Reading(listing, options)
    reading.prepare()
    try:
        _require_room(listing, path, reading.most_bytes())
        with atomic_write(path) as file:
            reading.write(file)
    except OSError as error:
        return _not_kept(listing, options, error)
    written = pixel_cache.opened(path, listing.name, listing.split)
    if written is None:
        raise DataError(f"{listing.name}: {path} was changed while it was written")
    return _warned(written)


def _not_kept(listing: Listing, options: ReadOptions, error: Exception) -> ImageClasses:
    warnings.warn(
        f"{listing.name}/{listing.split}: decoded images cannot be kept, and will be decoded "
        f"again next time: {error}; METASPARSE_CACHE names another folder",
        stacklevel=4,
    )
    return _warned(_in_memory(listing, options))


def examined(
    listing: Listing, options: ReadOptions
) -> Iterator[tuple[str, Picture, tuple[int, ...] | None]]:
    """Decodes every picture and keeps none: (class, picture, (C, H, W) or None if unreadable)."""
    classes = listing.classes()
    every = [(name, each) for name in sorted(classes) for each in classes[name]]
    reading = _Reading(listing, options)
    with _shown(f"{listing.name}: images", len(every)) as advance:
        for (name, each), array in reading.attempted(every, reading.decoded, advance):
            yield name, each, None if isinstance(array, UnreadableError) else array.shape


def _in_memory(listing: Listing, options: ReadOptions) -> ImageClasses:
    reading = _Reading(listing, options)
    reading.prepare()
    held = io.BytesIO()
    said = reading.write(held)
    count = int(np.prod(said["shape"], dtype=np.int64))
    images = np.frombuffer(held.getbuffer(), np.uint8, count).reshape(said["shape"])
    return pixel_cache.as_classes(images, said, listing.name, listing.split)


def _warned(classes: ImageClasses) -> ImageClasses:
    for note in classes.notes:
        warnings.warn(f"{classes}: {note}", stacklevel=4)
    return classes


def _require_room(listing: Listing, path: Path, size: int) -> None:
    """Whether the disk of the kept images has room for them; OSError if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(
            f"{size / 2**30:.1f} GiB needed in {path.parent}, {free / 2**30:.1f} GiB free"
        )


@dataclass
class _Reading:
    """The decoding of one listing, from headers to the file."""

    listing: Listing
    options: ReadOptions
    chosen: Chosen = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    few: list[str] = field(default_factory=list)
    shape: tuple[int, int, int] = (0, 0, 0)

    @property
    def owner(self) -> str:
        return self.listing.name

    def prepare(self) -> None:
        """Reads the headers: which pictures there are, and the one shape that they get."""
        classes = self.listing.classes()
        every = [(name, each) for name in sorted(classes) for each in classes[name]]
        if not every:
            raise DataNotFoundError(f"{self.owner}: no images in split {self.listing.split}")
        if self.options.image_size is not None:
            side = self.options.image_size
            owner = f"{self.owner}/{self.listing.split}"
            require_memory(owner, "image_size", (len(every), 1, side, side))
        self._refuse_one_class(classes)
        shapes: dict[tuple[int, int, int], str] = {}
        with _shown(f"{self.owner}: headers", len(every)) as advance:
            for (name, each), shape in self._readable(every, self._header, advance):
                self.chosen.append((name, each))
                shapes.setdefault(shape, each.name)
        self._drop_small_classes()
        self.shape = self._one_shape(shapes)

    def write(self, file: BinaryIO) -> dict[str, Any]:
        """Writes the pixels and what they are; returns the latter."""
        names: list[str] = []
        offsets = [0]
        with _shown(f"{self.owner}: images", len(self.chosen)) as advance:
            for (name, _), array in self._readable(self.chosen, self._pixels, advance):
                if not names or names[-1] != name:
                    self._close_class(file, names, offsets)
                    names.append(name)
                    offsets.append(offsets[-1])
                file.write(array.tobytes())
                offsets[-1] += 1
        self._close_class(file, names, offsets)
        if not names:
            raise DataError(
                f"{self.owner}: no class of split {self.listing.split} has "
                f"{self.options.min_images} readable images"
            )
        shape = (offsets[-1], *self.shape)
        notes = self._notes()
        pixel_cache.finish(file, shape, offsets, names, notes)
        return {"shape": shape, "offsets": offsets, "class_names": names, "notes": notes}

    def most_bytes(self) -> int:
        """Bytes of the pixels, if all of them can be decoded."""
        return len(self.chosen) * int(np.prod(self.shape, dtype=np.int64))

    def _header(self, each: Picture) -> tuple[int, int, int]:
        return picture.header(self.owner, each)

    def decoded(self, each: Picture) -> np.ndarray:
        """The pixels of a picture, in the channels that it has itself."""
        options = self.options
        return picture.pixels(
            self.owner,
            each,
            image_size=options.image_size,
            fit=options.fit,
            ground=options.ground,
        )

    def _pixels(self, each: Picture) -> np.ndarray:
        array = self.decoded(each)
        channels, *size = self.shape
        if list(array.shape[1:]) != size:
            raise UnreadableError(
                f"{self.owner}: {each.name}: expected {size[0]}x{size[1]} pixels as its header "
                f"says, got {array.shape[1]}x{array.shape[2]}"
            )
        return np.repeat(array, 3, axis=0) if len(array) < channels else array

    def _readable(
        self, chosen: Chosen, function: Callable[[Picture], T], advance: Callable[[], None]
    ) -> Iterator[tuple[tuple[str, Picture], T]]:
        """Each picture that can be read with what the function makes of it, in order."""
        for item, result in self.attempted(chosen, function, advance):
            if isinstance(result, UnreadableError):
                self.unreadable.append(item[1].name)
            else:
                yield item, result

    def attempted(
        self, chosen: Chosen, function: Callable[[Picture], T], advance: Callable[[], None]
    ) -> Iterator[tuple[tuple[str, Picture], T | UnreadableError]]:
        """Each picture with what the function makes of it, in order, computed ahead by threads.

        What cannot be read is raised, or given where ``skip_unreadable`` asks for it.
        """

        def attempt(index: int) -> T | UnreadableError | None:
            if index >= len(chosen):
                return None  # Threads run ahead of the end.
            try:
                return function(chosen[index][1])
            except UnreadableError as error:
                if not self.options.skip_unreadable:
                    raise
                return error

        workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        with closing(prefetch(attempt, 0, workers)) as results:
            for item, result in zip(chosen, islice(results, len(chosen)), strict=True):
                advance()
                yield item, result  # type: ignore[misc]

    def _refuse_one_class(self, classes: Classes) -> None:
        if len(classes) == 1:
            (name,) = classes
            first = next(iter(classes[name])).name
            raise DataError(
                f"{self.owner}: expected several classes in split {self.listing.split}, got one, "
                f"{name!r}, of {first} and others; where a class is a folder of images, those of "
                "all classes of a split lie side by side"
            )

    def _drop_small_classes(self) -> None:
        counts: dict[str, int] = {}
        for name, _ in self.chosen:
            counts[name] = counts.get(name, 0) + 1
        self.few = [n for n, count in counts.items() if count < self.options.min_images]
        dropped = set(self.few)
        self.chosen = [item for item in self.chosen if item[0] not in dropped]

    def _close_class(self, file: BinaryIO, names: list[str], offsets: list[int]) -> None:
        """Takes the last class back if too few of its images could be decoded."""
        if names and offsets[-1] - offsets[-2] < self.options.min_images:
            self.few.append(names.pop())
            offsets.pop()
            file.seek(offsets[-1] * int(np.prod(self.shape, dtype=np.int64)))
            file.truncate()

    def _one_shape(self, shapes: dict[tuple[int, int, int], str]) -> tuple[int, int, int]:
        channels = max((shape[0] for shape in shapes), default=1)
        if self.options.image_size is not None:
            return channels, self.options.image_size, self.options.image_size
        sizes = {shape[1:]: name for shape, name in sorted(shapes.items())}
        if len(sizes) > 1:
            smallest, largest = min(sizes), max(sizes)
            raise DataError(
                f"{self.owner}: images of split {self.listing.split} differ in size, such as "
                f"{smallest} of {sizes[smallest]} and {largest} of {sizes[largest]}; "
                "image_size brings them to one"
            )
        (size,) = sizes or {(0, 0): ""}
        return channels, *size

    def _notes(self) -> list[str]:
        strays = [str(path) for path in self.listing.strays]
        least = self.options.min_images
        said = (
            ("file", "of no image format", strays),
            ("image", "that cannot be read", self.unreadable),
            ("class", f"with fewer than {counted(least, 'image')}", sorted(self.few)),
        )
        return [left_out(names, what, why) for what, why, names in said if names]


@contextmanager
def _shown(text: str, total: int) -> Generator[Callable[[], None]]:
    """A progress bar on a terminal's standard error, for what takes long; yields its step."""
    if total < _MANY or not sys.stderr.isatty():
        yield lambda: None
        return
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
