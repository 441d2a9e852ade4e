"""The typefaces that glyphs are drawn with: those that matplotlib ships, and no others."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont

from metasparse_ext.data.errors import DataNotFoundError

# The order is part of the random stream of the glyphs: append, never insert.
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)

_EM_PIXELS = 64


class Face:
    """One font file: which characters it has, and their bitmaps."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataNotFoundError(f"glyphs: matplotlib's font is missing: {path}")
        self.path = path
        with TTFont(path, lazy=True) as font:
            self.characters = frozenset(map(chr, font.getBestCmap() or ()))
        # The basic layout draws the glyph of the character alone, whether or not libraqm is there.
        self._font = ImageFont.truetype(
            os.fspath(path), _EM_PIXELS, layout_engine=ImageFont.Layout.BASIC
        )

    def draw(self, character: str) -> Image.Image | None:
        """The character's grey bitmap cropped to its ink (bright on dark); None if it is blank."""
        core: Any = self._font.getmask(character, mode="L")
        bitmap = Image.frombytes("L", core.size, bytes(core))
        ink = bitmap.getbbox()
        return bitmap.crop(ink) if ink else None


@cache
def faces() -> tuple[Face, ...]:
    """The typefaces of ``FACES``, opened once."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return tuple(Face(folder / f"{name}.ttf") for name in FACES)


def fingerprint() -> str:
    """A digest of the font files themselves, which changes when a release changes a font."""
    digest = hashlib.sha256()
    for face in faces():
        digest.update(face.path.read_bytes())
    return digest.hexdigest()
