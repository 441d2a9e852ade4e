"""One picture that is opened when its turn comes: a file, a part of an archive, a row of an array.

Every kind is opened as a Pillow image, so that sizes can be asked for before pixels are decoded,
and all of them go through the same conversion.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from metasparse_ext.data import tiff
from metasparse_ext.data.errors import DataError

Box = tuple[int, int, int, int]

_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_ORIENTATION = 0x0112
_LYING = frozenset({5, 6, 7, 8})  # orientations that swap height and width
# Pillow knows these files by name only, or shows a picture of what is none.
_NO_PICTURES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})


class UnreadableError(DataError):
    """A picture that cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Where one picture is.

    Attributes:
        name: as messages show it.
        open: opens the Pillow image, its pixels not decoded yet; safe to call from any thread.
        box: (left, top, right, bottom), the part to keep, or None for all of it.
        inverted: whether dark becomes bright.
    """

    name: str
    open: Callable[[], AbstractContextManager[Image.Image]]
    box: Box | None = None
    inverted: bool = False


def file_picture(path: Path, box: Box | None = None, *, inverted: bool = False) -> Picture:
    """A file of any format that Pillow reads."""
    return Picture(str(path), partial(_open_file, path), box, inverted)


def member_picture(archive: zipfile.ZipFile, member: str, *, inverted: bool = False) -> Picture:
    """A file in a zip archive, which stays open as long as the picture does."""
    opener = partial(_open_member, archive, member)
    return Picture(f"{archive.filename}/{member}", opener, None, inverted)


def encoded_picture(name: str, data: bytes | np.ndarray) -> Picture:
    """A file that is in memory, as bytes or as a uint8 array of any shape."""
    return Picture(name, partial(_open_bytes, data))


def array_picture(name: str, pixels: np.ndarray) -> Picture:
    """Pixels (H, W) or (H, W, 3) uint8."""
    return Picture(name, partial(Image.fromarray, pixels))


@contextmanager
def _open_file(path: Path) -> Generator[Image.Image]:
    if not path.is_file():  # To open a pipe would wait for its other end.
        raise UnreadableError("not a regular file")
    # Of a path Pillow maps plain TIFF files into memory, and mixes up their rows if they lie.
    with open(path, "rb") as file, _opened(file) as image:
        yield image


def _open_member(archive: zipfile.ZipFile, member: str) -> Image.Image:
    return _opened(io.BytesIO(archive.read(member)))


def _open_bytes(data: bytes | np.ndarray) -> Image.Image:
    return _opened(io.BytesIO(bytes(data)))


def _opened(file: BinaryIO) -> Image.Image:
    image = Image.open(file)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        wrong = tiff.damage(file, image.tag_v2)
        if wrong is not None:
            raise UnreadableError(wrong)
    return image


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of the files that Pillow reads as pictures, in lower case."""
    Image.init()
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PICTURES
    )


def header(owner: str, picture: Picture) -> tuple[int, int, int]:
    """(C, H, W) of a picture as :func:`pixels` gives it unresized, without decoding it.

    Raises:
        UnreadableError: naming the picture.
    """
    try:
        with picture.open() as image:
            _require_bytes(image)
            width, height = image.size
            if _is_lying(image):
                width, height = height, width
            channels = 1 if image.mode in _GREY_MODES else 3
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        raise _unreadable(owner, picture, error) from error
    if picture.box is not None:
        left, top, right, bottom = _within(owner, picture, width, height)
        width, height = right - left, bottom - top
    return channels, height, width


def pixels(
    owner: str, picture: Picture, *, image_size: int | None, fit: str, ground: str
) -> np.ndarray:
    """Decodes a picture, turned upright as its EXIF data say.

    Args:
        owner: the data set, for messages.
        picture: what to decode.
        image_size: side of the result; None keeps the size.
        fit: how a picture that is not square becomes so, ``"squash"`` or ``"crop"``: the largest
            square in its middle.
        ground: what shows through transparent pixels, ``"white"`` or ``"black"``.

    Returns:
        (C, H, W) uint8, C = 1 or 3.

    Raises:
        UnreadableError: naming the picture.
    """
    try:
        with picture.open() as image:
            if image.format == "PNG":
                image.verify()  # the checksums, which decoding the pixels leaves out
        with picture.open() as image:
            _require_bytes(image)
            upright = _flat(ImageOps.exif_transpose(image), ground)
    except Exception as error:  # damaged files make Pillow raise errors of many kinds
        raise _unreadable(owner, picture, error) from error
    if picture.box is not None:
        upright = upright.crop(_within(owner, picture, *upright.size))
    if image_size is not None:
        upright = fitted(upright, image_size, fit)
    array = np.asarray(upright)
    if picture.inverted:
        array = 255 - array
    return array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)


def fitted(image: Image.Image, image_size: int, fit: str) -> Image.Image:
    """A square image: the whole squashed, or the largest square in the middle; bicubic."""
    if fit == "crop" and image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size == (image_size, image_size):
        return image
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC)


def _flat(image: Image.Image, ground: str) -> Image.Image:
    """The image as L or RGB, transparent pixels composed on the ground."""
    mode = "L" if image.mode in _GREY_MODES else "RGB"
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image.convert(mode)
    image = image.convert("RGBA")
    behind = Image.new("RGBA", image.size, ground)
    return Image.alpha_composite(behind, image).convert(mode)


def _is_lying(image: Image.Image) -> bool:
    """Whether height and width are swapped when the image is turned upright."""
    if image.format == "TIFF":
        return False  # Pillow gives the size of the upright image.
    if image.format == "PNG" and "exif" not in image.info:
        return False  # To look for it behind the pixels would decode them.
    return image.getexif().get(_ORIENTATION) in _LYING


def _require_bytes(image: Image.Image) -> None:
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise UnreadableError(f"expected 8-bit images, got mode {image.mode!r}")


def _within(owner: str, picture: Picture, width: int, height: int) -> Box:
    """The part of the box that lies in the picture."""
    left, top, right, bottom = picture.box or (0, 0, width, height)
    box = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise UnreadableError(
            f"{owner}: {picture.name}: expected a bounding box within {width}x{height} pixels, "
            f"got {picture.box}"
        )
    return box


def _unreadable(owner: str, picture: Picture, error: BaseException) -> UnreadableError:
    if isinstance(error, UnreadableError):
        return UnreadableError(f"{owner}: {picture.name}: {error}")
    if isinstance(error, UnidentifiedImageError):  # whose text names an object of Python
        return UnreadableError(f"{owner}: cannot read {picture.name}: not of a known image format")
    return UnreadableError(f"{owner}: cannot read {picture.name}: {' '.join(str(error).split())}")
