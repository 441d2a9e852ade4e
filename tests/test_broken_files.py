"""Damaged files of images: the same ones each time, and new ones.

``make stress`` tries many more.
"""

import random

import pytest
from support import broken_files
from support.broken_files import STRATEGIES, Archive, Edit, Picture
from support.machine import Workers
from support.search import search


@pytest.fixture(scope="module")
def workers():
    running = Workers()
    yield running
    running.close()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_damaged_file_is_refused_by_its_name_or_read_right(name, workers):
    fresh = random.SystemRandom().randrange(2**32)
    for seed in (0, fresh):
        failure = search(STRATEGIES[name], workers, seed, draws=60)
        assert failure is None, f"{name}, seed {seed}: {failure}"


# Files that were read as something else once, by what was wrong.
REMEMBERED = {
    "a byte of the pixels of a PNG": Picture(
        "PNG", "LA", (1, 5), edits=(Edit("number", place=126, number=0),)
    ),
    "a bit of the pixels of a PNG": Picture("PNG", "LA", (4, 8), edits=(Edit("flip", 110, 3),)),
    "a name whose last character is none": Archive(
        shape=(2, 1, 1), inner=(("class_names", Edit("flip", place=-1)),)
    ),
    "a name that is half a character": Archive(
        shape=(2, 1, 1), inner=(("class_names", Edit("number", -4, 0xD800, 4)),)
    ),
    "the stream in a PNG, and its end is missing": Picture(
        "PNG", "1", (1, 6), edits=(Edit("flip", 45), Edit("cut", -8), Edit("cut", -9))
    ),
    "the tag of a TIFF that says what its pixels mean": Picture(
        "TIFF", "1", (1, 1), edits=(Edit("flip", -58),)
    ),
    "the number of values of a TIFF's tag": Picture(
        "TIFF", "1", (7, 1), edits=(Edit("flip", -19, 1),)
    ),
    "a tag of a TIFF that comes twice": Picture(
        "TIFF", "L", (1, 13), options=2, edits=(Edit("flip", 500), Edit("flip", 3517))
    ),
    "the end of a TIFF's directory": Picture(
        "TIFF", "1", (1, 1), options=1, edits=(Edit("cut", -1),)
    ),
}


@pytest.mark.parametrize("name", REMEMBERED)
def test_what_was_read_wrong_once_or_failed_otherwise_is_refused(name):
    assert REMEMBERED[name].check() is None


@pytest.mark.parametrize("place", [18, 22], ids=["width", "height"])
def test_a_header_of_more_pixels_than_the_memory_holds(place):
    """Refused before memory is taken for them."""
    edit = Edit("number", place, number=2**31 - 1, width=4)
    assert Picture("BMP", "RGB", (200, 200), edits=(edit,)).check() is None


def test_a_wrong_picture_is_found(monkeypatch):
    """By a reader that mirrors what it reads."""
    draw = Picture("BMP", "L", (3, 4))
    assert draw.check() is None
    real = broken_files.load

    class Mirrored:
        def __init__(self, images):
            self.images = images[..., ::-1]

    monkeypatch.setattr(broken_files, "load", lambda *a, **k: Mirrored(real(*a, **k).images))
    assert draw.check() == "another image is read"
    assert Archive(shape=(2, 3, 3)).check() == "other images are read"
