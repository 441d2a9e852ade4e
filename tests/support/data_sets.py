"""Data for the tests of the data package: real sets where they are, and sets made to be decoded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from metasparse_ext.data import ImageClasses

_REPOSITORY = Path(__file__).resolve().parents[2]


def real_data(pattern: str) -> Path:
    """The folder of real image sets, if it has files of that name; else the test is skipped."""
    chosen = os.environ.get("METASPARSE_DATA")
    folder = Path(chosen) if chosen else _REPOSITORY.parent / "shared" / "data"
    if not any(folder.glob(pattern)):
        pytest.skip(f"needs {pattern}; METASPARSE_DATA names no folder that has it")
    return folder


def coded_classes(sizes: list[int], split: str = "train", side: int = 3) -> ImageClasses:
    """Images that say what they are: the top left pixel is the class, the next the index in it."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.zeros((len(labels), side, side), np.uint8)
    images[:, 0, 0] = labels
    images[:, 0, 1] = np.concatenate([np.arange(size) for size in sizes])
    names = [f"class{label}" for label in range(len(sizes))]
    return ImageClasses.from_labels(images, labels, names, name="coded", split=split)


def decode(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(class, index) of coded images (..., 1, H, W) in [0, 1]."""
    corner = np.rint(images[..., 0, 0, :2].numpy() * 255).astype(int)
    return corner[..., 0], corner[..., 1]
