"""Drawing of one character many times: another typeface, posture, stroke and wobble each time."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from metasparse_ext.data.glyphs.faces import faces

SIZE = 28
SAMPLES = 20

# Strengths were chosen so that a nearest neighbour on raw pixels does about as well as it does on
# Omniglot (5-way 1-shot .52 there): shape has to be learned, and is enough.
_CANVAS = 2 * SIZE  # drawn at twice the size, then averaged down
_EXTENT = 38.0  # longer side of the ink on the canvas, pixels
_STRETCH = (0.8, 1.1)
_DEGREES = 16.0
_SHEAR = 0.2
_SHIFT = 3.5  # canvas pixels
_WOBBLE = 2.0  # canvas pixels
_BLUR = (0.8, 1.6)  # canvas pixels
_THRESHOLD = (60.0, 115.0)  # of the blurred ink: low is a broad pen, high is a fine one
_CONTRAST = (2.0, 5.0)
_KNOTS = (0, _CANVAS // 2, _CANVAS)

Mesh = list[tuple[tuple[int, ...], tuple[float, ...]]]


def render(character: str, seed: int) -> np.ndarray:
    """Draws all samples of one character.

    Args:
        character: one that at least one typeface has.
        seed: from 0 to 2^64 - 1. The samples depend on (seed, character) alone.

    Returns:
        (SAMPLES, SIZE, SIZE) uint8, strokes bright on dark.
    """
    key = np.array([seed, ord(character)], np.uint64)  # a stream of its own for every character
    rng = np.random.Generator(np.random.Philox(key=key))
    having = [face for face in faces() if character in face.characters]
    bitmaps = [bitmap for face in having if (bitmap := face.draw(character))]
    order = np.resize(rng.permutation(len(bitmaps)), SAMPLES)
    return np.stack([_sample(bitmaps[index], rng) for index in order])


def _sample(bitmap: Image.Image, rng: np.random.Generator) -> np.ndarray:
    warped = bitmap.transform(
        (_CANVAS, _CANVAS), Image.Transform.MESH, _warp(bitmap, rng), Image.Resampling.BILINEAR
    )
    soft = warped.filter(ImageFilter.GaussianBlur(rng.uniform(*_BLUR)))
    inked = soft.point(_pen(rng.uniform(*_THRESHOLD), rng.uniform(*_CONTRAST)))
    return np.asarray(inked.reduce(2))


def _warp(bitmap: Image.Image, rng: np.random.Generator) -> Mesh:
    """A random affine map and a wobble, as Pillow's mesh: canvas boxes and quads of the bitmap."""
    knots = np.stack(np.meshgrid(_KNOTS, _KNOTS, indexing="xy"), axis=-1)  # (row, column, xy)
    wobble = rng.uniform(-_WOBBLE, _WOBBLE, knots.shape)
    centre = _CANVAS / 2 + rng.uniform(-_SHIFT, _SHIFT, 2)
    angle = math.radians(rng.uniform(-_DEGREES, _DEGREES))
    shear = rng.uniform(-_SHEAR, _SHEAR)
    stretch = _EXTENT / max(bitmap.size) * rng.uniform(*_STRETCH, 2)

    # From the canvas back to the bitmap: unturn, unshear, unstretch. Written out rather than with
    # matrices so that no linear algebra library has a say in the bytes.
    x, y = np.moveaxis(knots + wobble - centre, -1, 0)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = cos * x + sin * y, cos * y - sin * x
    x, y = (x - shear * y) / stretch[0], y / stretch[1]
    points = np.stack([x + bitmap.width / 2, y + bitmap.height / 2], axis=-1)

    cells = [(row, column) for row in range(2) for column in range(2)]
    return [
        (
            (_KNOTS[column], _KNOTS[row], _KNOTS[column + 1], _KNOTS[row + 1]),
            (  # the quad's corners: north-west, south-west, south-east, north-east
                *points[row, column],
                *points[row + 1, column],
                *points[row + 1, column + 1],
                *points[row, column + 1],
            ),
        )
        for row, column in cells
    ]


def _pen(threshold: float, contrast: float) -> list[int]:
    """A brightness table that puts the stroke's edge where the blurred ink crosses a threshold."""
    table = (np.arange(256) - threshold) * contrast + 128
    table[0] = 0
    return table.clip(0, 255).astype(int).tolist()
