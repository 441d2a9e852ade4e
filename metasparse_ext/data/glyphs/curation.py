"""How the characters of ``alphabet.py`` were chosen; ``python -m ...glyphs.curation`` prints them.

A few-shot class must be told apart by its shape alone, so characters that look alike once size
and position are gone (Latin A, Greek Alpha, Cyrillic A; c and C) must not be two classes. The
choice is made once and kept in ``alphabet.py``, because a choice made at run time would drift
with the rasteriser and move characters between the training and the test classes. What looks alike
but for a mark stays, in one split (``alphabet.letter_of``).
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from metasparse_ext.data.glyphs.faces import Face, faces

_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lo", "Nd"})  # letters with a shape of their own, digits
_LEAST_FACES = 2
_ALIKE = 0.89  # cosine similarity of shape vectors, averaged over the typefaces in common
_SIDE = 36
_MARGIN = 2


def is_candidate(character: str) -> bool:
    """Letters and digits that are not written as a base character and a mark."""
    return unicodedata.category(character) in _CATEGORIES and not unicodedata.decomposition(
        character
    )


def shape_vectors(bitmaps: Sequence[Image.Image]) -> np.ndarray:
    """(n, _SIDE²) unit vectors of bitmaps fitted into a square, softened so that edges may differ.

    The aspect ratio is pulled half way towards 1 first: samples are stretched by more than the
    difference between a capital and its small form (C and c).
    """
    inner = _SIDE - 2 * _MARGIN
    squares = np.zeros((len(bitmaps), _SIDE, _SIDE), np.float32)
    for square, bitmap in zip(squares, bitmaps, strict=True):
        aspect = (bitmap.width / bitmap.height) ** 0.5
        width = max(1, round(inner * min(aspect, 1)))
        height = max(1, round(inner / max(aspect, 1)))
        top, left = (_SIDE - height) // 2, (_SIDE - width) // 2
        fitted = bitmap.resize((width, height), Image.Resampling.BOX)
        square[top : top + height, left : left + width] = fitted
    for axis in (1, 2):
        squares = np.roll(squares, 1, axis) + 2 * squares + np.roll(squares, -1, axis)  # type: ignore[assignment]
    vectors = squares.reshape(len(bitmaps), _SIDE * _SIDE)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def similarities(characters: Sequence[str], typefaces: Iterable[Face]) -> np.ndarray:
    """(n, n) mean similarity of two characters over the typefaces that have both; 0 if none has.

    The diagonal of a character that too few typefaces have is NaN.
    """
    n = len(characters)
    total, common = np.zeros((n, n)), np.zeros((n, n))
    for face in typefaces:
        drawn = {
            row: bitmap
            for row, character in enumerate(characters)
            if character in face.characters and (bitmap := face.draw(character))
        }
        vectors = shape_vectors(list(drawn.values()))
        pairs = np.ix_(list(drawn), list(drawn))
        total[pairs] += vectors @ vectors.T
        common[pairs] += 1
    mean = total / np.maximum(common, 1)
    rare = np.flatnonzero(common.diagonal() < _LEAST_FACES)
    mean[rare, rare] = np.nan
    return mean


def candidates() -> list[str]:
    """All candidates that a typeface has, in code point order."""
    return sorted(filter(is_candidate, frozenset().union(*(f.characters for f in faces()))))


def curate(characters: Sequence[str]) -> list[str]:
    """The characters without those that look like an earlier one or that too few typefaces have."""
    alike = similarities(characters, faces())
    kept: list[int] = []
    for row in range(len(characters)):
        if not np.isnan(alike[row, row]) and np.all(alike[row, kept] < _ALIKE):
            kept.append(row)
    return [characters[row] for row in kept]


def as_ranges(characters: Iterable[str]) -> str:
    """The characters as hexadecimal code point ranges, such as ``0030-0039 0041``."""
    ranges: list[list[int]] = []
    for code in map(ord, characters):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return " ".join(f"{a:04X}" if a == b else f"{a:04X}-{b:04X}" for a, b in ranges)


if __name__ == "__main__":
    print(textwrap.fill(as_ranges(curate(candidates())), 96, break_on_hyphens=False))
