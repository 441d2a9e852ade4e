"""Glyphs: over a thousand characters of many scripts, drawn from fonts that are always at hand.

A stand-in for Omniglot that needs no download: 20 samples of 28x28 of each character, strokes
bright on dark, in fixed disjoint splits by character.
"""

from __future__ import annotations

import hashlib
import json
import warnings

import numpy as np
import PIL
from PIL import features

from metasparse_ext.data.cache import atomic_write, cache_folder
from metasparse_ext.data.errors import DataError
from metasparse_ext.data.glyphs.alphabet import ALPHABET, SPLITS, class_name, letter_of, split_of
from metasparse_ext.data.glyphs.faces import FACES, fingerprint
from metasparse_ext.data.glyphs.render import SAMPLES, SIZE, render
from metasparse_ext.data.images import ImageClasses
from metasparse_ext.data.npz import classes_from_arrays, read_npz

__all__ = ["ALPHABET", "SAMPLES", "SIZE", "generate", "letter_of", "load_glyphs", "split_of"]

_FORMAT = 3  # raise it with any change to what is drawn or to how it is stored


def generate(seed: int = 0, characters: tuple[str, ...] = ALPHABET) -> dict[str, np.ndarray]:
    """Draws the characters; the same bytes for the same seed.

    Args:
        seed: from 0 to 2^64 - 1.
        characters: the classes to draw. A class does not depend on which others are drawn.

    Returns:
        The arrays of a data file: ``images`` (n, 28, 28) uint8, ``labels`` (n,), ``class_names``
        and ``split`` (classes,).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"glyphs: seed: expected 0 to 2^64 - 1, got {seed}")
    return {
        "images": np.concatenate([render(character, seed) for character in characters]),
        "labels": np.repeat(np.arange(len(characters), dtype=np.int16), SAMPLES),
        "class_names": np.array([class_name(character) for character in characters]),
        "split": np.array([split_of(character) for character in characters]),
    }


def load_glyphs(split: str = "train", *, seed: int = 0) -> ImageClasses:
    """Loads one split of the glyphs, drawing all of them on the first call.

    They are kept under ``METASPARSE_CACHE`` (else ``$XDG_CACHE_HOME/metasparse_ext``, else
    ``~/.cache/metasparse_ext``). A folder that cannot be written costs the seconds of drawing
    in every process, and a warning.

    Args:
        split: ``"train"`` (655 characters), ``"val"`` (203) or ``"test"`` (227). All forms of a
            letter are in one of them.
        seed: of the distortions; the characters of a split are the same for every seed.
    """
    if split not in SPLITS:
        raise DataError(f"glyphs: no split {split!r}; splits there: {', '.join(SPLITS)}")
    path = cache_folder() / f"glyphs-{_cache_key(seed)}.npz"
    if path.is_file():
        try:
            return read_npz([path], "glyphs", split)
        except DataError as error:
            warnings.warn(f"drawing the glyphs again: {error}", stacklevel=2)
    arrays = generate(seed)
    try:
        with atomic_write(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(
            f"the glyphs cannot be kept, and will be drawn again next time: {error}; "
            "METASPARSE_CACHE names another folder",
            stacklevel=2,
        )
    return classes_from_arrays(arrays, "glyphs", split)


def _cache_key(seed: int) -> str:
    """A digest of all that the bytes depend on: this code, the fonts, and what draws with them."""
    ingredients = {
        "format": _FORMAT,
        "seed": seed,
        "alphabet": "".join(ALPHABET),
        "faces": FACES,
        "fonts": fingerprint(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
    }
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:16]
