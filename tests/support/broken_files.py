"""Files of images that are damaged at random: refused by their name, or read right."""

import io
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from metasparse_ext.data import DataError, load
from support.machine import INSTRUCTION_SETS
from support.search import attack_by_search

# By format: suffix, modes, and options of the encoder.
FORMATS: dict[str, tuple[str, tuple[str, ...], tuple[dict, ...]]] = {
    "PNG": (".png", ("1", "L", "LA", "P", "RGB", "RGBA"), ({}, {"compress_level": 0})),
    "JPEG": (".jpg", ("L", "RGB", "CMYK"), ({}, {"progressive": True}, {"subsampling": 0})),
    "BMP": (".bmp", ("1", "L", "P", "RGB", "RGBA"), ({},)),
    "GIF": (".gif", ("L", "P", "RGB"), ({}, {"interlace": 0})),
    "TIFF": (
        ".tiff",
        ("1", "L", "P", "RGB", "RGBA", "CMYK"),
        ({}, *({"compression": f"tiff_{name}"} for name in ("lzw", "deflate", "adobe_deflate"))),
    ),
    "WEBP": (".webp", ("RGB", "RGBA"), ({}, {"lossless": True})),
    "PPM": (".ppm", ("1", "L", "RGB"), ({},)),
}
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")
CHECKED = ("PNG",)  # a checksum over all that makes the picture
# What a hostile header may say of a size.
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 10**5, 2**31 - 1, 2**31, 2**32 - 1)


class Edit(NamedTuple):
    """A change of a file at ``place`` (modulo its length): of a bit, of a number, or a cut."""

    kind: str
    place: int
    number: int = 0
    width: int = 1
    order: str = "little"

    def apply(self, data: bytearray) -> None:
        if not data:
            return
        place = self.place % len(data)
        if self.kind == "cut":
            del data[place:]
        elif self.kind == "flip":
            data[place] ^= 1 << self.number
        else:
            value = self.number % 256**self.width
            data[place : place + self.width] = value.to_bytes(self.width, self.order)


def edited(data: bytes, edits: tuple[Edit, ...]) -> bytes:
    changed = bytearray(data)
    for edit in edits:
        edit.apply(changed)
    return bytes(changed)


class Picture(NamedTuple):
    """A file of an image in a folder of classes."""

    format: str = "PNG"
    mode: str = "RGB"
    size: tuple[int, int] = (4, 3)
    options: int = 0
    edits: tuple[Edit, ...] = ()
    image_size: int | None = None
    data: int = 0
    isa: str = INSTRUCTION_SETS[-1]

    def check(self) -> str | None:
        """What is wrong with the result, or None."""
        suffix, _, options = FORMATS[self.format]
        picture, encoded = self._picture(), io.BytesIO()
        picture.save(encoded, self.format, **options[self.options])
        whole = encoded.getvalue()
        damaged = edited(whole, self.edits)
        with TemporaryDirectory() as root, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            # A large picture may be whole.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            path = Path(root, "train", "a", f"0{suffix}")
            other = Path(root, "train", "b", f"0{suffix}")
            for file, content in {path: damaged, other: whole}.items():
                file.parent.mkdir(parents=True)
                file.write_bytes(content)
            try:
                found = load(
                    "folder", root, "train", image_size=self.image_size, cache=False
                ).images
            except DataError as error:
                if damaged == whole:
                    return f"a whole file is refused: {error}"
                return None if str(path) in str(error) else f"the error names no file: {error}"
        if said:
            return f"the decoder says {said[0].message}, and the image is taken"
        exact = self.format in (LOSSLESS if damaged == whole else CHECKED)
        if exact and self.image_size is None and not np.array_equal(found[0], _planes(picture)):
            return "another image is read"
        return None

    def _picture(self) -> Image.Image:
        pixels = np.random.default_rng(self.data).integers(0, 256, (*self.size, 3), np.uint8)
        return Image.fromarray(pixels).convert(self.mode)


def _planes(picture: Image.Image) -> np.ndarray:
    """(1 or 3, H, W) as the reader brings them to."""
    grey = picture.mode in ("1", "L", "LA")
    pixels = np.asarray(picture.convert("L" if grey else "RGB"))
    return pixels[np.newaxis] if grey else pixels.transpose(2, 0, 1)


class Archive(NamedTuple):
    """An .npz file; ``edits`` are of the archive, ``inner`` of the arrays' files before zipping."""

    compressed: bool = False
    shape: tuple[int, ...] = (4, 2, 2)
    edits: tuple[Edit, ...] = ()
    inner: tuple[tuple[str, Edit], ...] = ()
    data: int = 0
    isa: str = INSTRUCTION_SETS[-1]

    def check(self) -> str | None:
        """What is wrong with the result, or None."""
        arrays = self._arrays()
        damaged = edited(self._archive(arrays), self.edits)
        with TemporaryDirectory() as root, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(root, "omniglot28.npz")
            path.write_bytes(damaged)
            try:
                found = load("omniglot", root, "train", cache=False).images
            except DataError as error:
                if not (self.edits or self.inner):
                    return f"a whole file is refused: {error}"
                return None if str(path) in str(error) else f"the error names no file: {error}"
        if self.inner:
            return None  # another archive, with checksums of its own
        expected = arrays["images"].reshape(len(found), *self.shape[1:3], -1).transpose(0, 3, 1, 2)
        return None if np.array_equal(found, expected) else "other images are read"

    def _arrays(self) -> dict[str, np.ndarray]:
        count = self.shape[0]
        drawn = np.random.default_rng(self.data)
        return {
            "images": drawn.integers(0, 256, self.shape, np.uint8),
            "labels": np.arange(count) * 2 // count,
            "class_names": np.array(["a", "b"]),
            "split": np.array(["train", "train"]),
        }

    def _archive(self, arrays: dict[str, np.ndarray]) -> bytes:
        packed = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if self.compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(packed, "w", method) as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.save(member, array)
                edits = tuple(edit for where, edit in self.inner if where == name)
                archive.writestr(f"{name}.npy", edited(member.getvalue(), edits))
        return packed.getvalue()


def _edit() -> SearchStrategy[Edit]:
    """Mostly of the first bytes, where the sizes are."""
    place = st.one_of(st.integers(0, 160), st.integers(-64, -1), st.integers(0, 5000))
    number = st.sampled_from(NUMBERS)
    width, order = st.sampled_from((1, 2, 4)), st.sampled_from(("little", "big"))
    return st.one_of(
        st.builds(Edit, st.just("flip"), place, st.integers(0, 7)),
        st.builds(Edit, st.just("number"), place, number, width, order),
        st.builds(Edit, st.just("cut"), place),
    )


def some(what: SearchStrategy) -> SearchStrategy[tuple]:
    return st.lists(what, max_size=3).map(tuple)


# Made once: building and checking them costs more than a draw.
EDIT = _edit()
EDITS = some(EDIT)
MEMBER_EDITS = some(st.tuples(st.sampled_from(("images", "labels", "class_names", "split")), EDIT))
SEEDS = st.integers(0, 2**16)


@st.composite
def pictures(draw, name: str) -> Picture:
    _, modes, options = FORMATS[name]
    sides = st.integers(1, 20)
    return Picture(
        name,
        draw(st.sampled_from(modes)),
        (draw(sides), draw(sides)),
        draw(st.integers(0, len(options) - 1)),
        draw(EDITS),
        draw(st.sampled_from((None, None, 5))),
        draw(SEEDS),
    )


@st.composite
def archives(draw) -> Archive:
    count, side = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    channels = draw(st.sampled_from(((), (1,), (3,))))
    return Archive(
        draw(st.booleans()),
        (count, side, side, *channels),
        draw(EDITS),
        draw(MEMBER_EDITS),
        draw(SEEDS),
    )


STRATEGIES: dict[str, SearchStrategy] = {
    **{f"damaged {name} files": pictures(name) for name in FORMATS},
    "damaged NPZ files": archives(),
}
for _name, _strategy in STRATEGIES.items():
    attack_by_search(_name, _strategy)
