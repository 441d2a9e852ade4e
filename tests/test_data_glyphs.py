"""The built-in character set: what it is, that it stays the same, and that it is learnable."""

import hashlib
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from metasparse_ext.data import DataError, EpisodeSampler, glyphs, load
from metasparse_ext.data.cache import atomic_write, cache_folder
from metasparse_ext.data.glyphs import curation
from metasparse_ext.data.glyphs.faces import faces

FEW = glyphs.ALPHABET[::60]


@pytest.fixture
def small_cache(tmp_path, monkeypatch):
    """An empty cache folder, and a set of few characters, counting how often it is drawn."""
    drawn = []

    def generate(seed):
        drawn.append(seed)
        return glyphs.generate.__wrapped__(seed, FEW)

    generate.__wrapped__ = glyphs.generate
    monkeypatch.setattr(glyphs, "generate", generate)
    monkeypatch.setenv("METASPARSE_CACHE", str(tmp_path))
    return tmp_path, drawn


def test_characters_and_splits_never_change():
    assert len(set(glyphs.ALPHABET)) == len(glyphs.ALPHABET) == 1085
    splits = [glyphs.split_of(character) for character in glyphs.ALPHABET]
    assert Counter(splits) == {"train": 655, "val": 203, "test": 227}
    listing = " ".join(map("{}:{}".format, glyphs.ALPHABET, splits))
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "436fe62fcf840545"


@pytest.mark.parametrize(
    "forms",
    [
        "AaȺⱥ",
        "DdđƊɗ",
        "Jjȷɟ",
        "\N{CYRILLIC SMALL LETTER GHE}\N{CYRILLIC CAPITAL LETTER GHE WITH STROKE}",
        "\N{CANADIAN SYLLABICS KO}\N{CANADIAN SYLLABICS KOO}\N{CANADIAN SYLLABICS WEST-CREE KWOO}",
    ],
)
def test_forms_of_a_letter_are_in_one_split(forms):
    assert set(forms) <= set(glyphs.ALPHABET)
    assert len(set(map(glyphs.letter_of, forms))) == 1
    assert len(set(map(glyphs.split_of, forms))) == 1


def test_no_letter_is_in_two_splits():
    splits = {}
    for character in glyphs.ALPHABET:
        splits.setdefault(glyphs.letter_of(character), set()).add(glyphs.split_of(character))
    assert {len(each) for each in splits.values()} == {1}
    assert len(splits) == 608


def test_letters_that_differ_by_more_than_a_mark_are_several():
    names = (
        "BD",
        "\N{LATIN SMALL LETTER TURNED M}m",
        "\N{CANADIAN SYLLABICS KO}\N{CANADIAN SYLLABICS PO}",
    )
    for one, other in names:
        assert glyphs.letter_of(one) != glyphs.letter_of(other)


def test_no_two_characters_look_alike():
    alike = curation.similarities(glyphs.ALPHABET, faces())
    assert not np.isnan(alike.diagonal()).any(), "a character that fewer than two typefaces have"
    np.fill_diagonal(alike, 0)
    assert alike.max() < 0.9


@pytest.mark.parametrize(
    ("characters", "kept"),
    [
        ("A\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}B", "AB"),
        ("Cc\N{CYRILLIC SMALL LETTER ES}", "C"),
        ("\N{CYRILLIC CAPITAL LETTER ZHE}\N{NO-BREAK SPACE}", "\N{CYRILLIC CAPITAL LETTER ZHE}"),
    ],
    ids=["three scripts", "small forms", "blank"],
)
def test_curation_drops_what_looks_like_an_earlier_one(characters, kept):
    assert curation.curate(characters) == list(kept)


def test_candidates_are_plain_letters_and_digits():
    assert all(map(curation.is_candidate, "A9ж\N{HEBREW LETTER ALEF}"))
    assert not any(
        map(curation.is_candidate, " é\N{COMBINING ACUTE ACCENT}\x00+\N{SUPERSCRIPT TWO}")
    )


def test_ranges():
    assert curation.as_ranges("ABCxz") == "0041-0043 0078 007A"


def test_same_bytes_for_the_same_seed():
    first, again = glyphs.generate(0, FEW), glyphs.generate(0, FEW)
    assert all(first[key].tobytes() == again[key].tobytes() for key in first)


def test_another_seed_draws_the_same_characters_otherwise():
    first, other = glyphs.generate(0, FEW[:3]), glyphs.generate(1, FEW[:3])
    assert (first["class_names"] == other["class_names"]).all()
    assert (first["images"] != other["images"]).any(axis=(1, 2)).all()


def test_a_class_does_not_depend_on_the_others():
    alone = glyphs.generate(0, FEW[4:5])["images"]
    np.testing.assert_array_equal(alone, glyphs.generate(0, FEW)["images"][80:100])


def test_seed_out_of_range():
    with pytest.raises(ValueError, match=r"seed: expected 0 to 2\^64 - 1, got -1"):
        glyphs.generate(-1, FEW)
    assert len(glyphs.generate(2**64 - 1, FEW[:1])["images"]) == 20


def test_samples_of_a_class_differ():
    images = glyphs.generate(0, FEW[:2])["images"]
    assert images.shape == (40, 28, 28)
    assert len({image.tobytes() for image in images}) == 40


def test_drawn_once_then_read(small_cache):
    folder, drawn = small_cache
    first, again = glyphs.load_glyphs("train"), glyphs.load_glyphs("train")
    np.testing.assert_array_equal(first.images, again.images)
    assert first.class_names == again.class_names
    assert drawn == [0]
    glyphs.load_glyphs("train", seed=5)
    assert drawn == [0, 5]
    assert len(list(folder.iterdir())) == 2


def test_splits_share_no_class(small_cache):
    names = [set(glyphs.load_glyphs(split).class_names) for split in ("train", "val", "test")]
    assert len(set().union(*names)) == sum(map(len, names)) == len(FEW)


def test_damaged_cache_is_drawn_again(small_cache):
    folder, drawn = small_cache
    first = glyphs.load_glyphs("train")
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="drawing the glyphs again"):
        again = glyphs.load_glyphs("train")
    np.testing.assert_array_equal(first.images, again.images)
    assert drawn == [0, 0]
    with warnings.catch_warnings(action="error"):
        glyphs.load_glyphs("train")


def test_cache_that_cannot_be_written(small_cache, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("METASPARSE_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="METASPARSE_CACHE names another folder"):
        assert len(glyphs.load_glyphs("train"))


@pytest.mark.parametrize(
    "change",
    [
        ("_FORMAT", -1),
        ("ALPHABET", FEW),
        ("FACES", ()),
        ("fingerprint", lambda: "other fonts"),
        ("PIL.__version__", "0"),
        ("np.__version__", "0"),
        ("features.version", lambda name: "0"),
    ],
    ids=lambda change: change[0],
)
def test_cache_key_has_all_that_changes_the_bytes(change, monkeypatch):
    before = glyphs._cache_key(0)
    assert before == glyphs._cache_key(0) != glyphs._cache_key(1)
    place, value = change
    owner, _, attribute = place.rpartition(".")
    monkeypatch.setattr(getattr(glyphs, owner) if owner else glyphs, attribute, value)
    assert glyphs._cache_key(0) != before


def test_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("METASPARSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "metasparse_ext"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "metasparse_ext"
    monkeypatch.setenv("METASPARSE_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"


def test_atomic_write_leaves_nothing_behind_when_it_fails(tmp_path):
    path = tmp_path / "folder" / "file"
    with atomic_write(path) as file:
        file.write(b"whole")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_unknown_split():
    with pytest.raises(DataError, match="no split 'meta'; splits there: train, val, test"):
        load("glyphs", split="meta")


def test_every_sample_has_ink_within_its_frame():
    data = load("glyphs", split="test")
    assert data.shape == (1, 28, 28)
    assert set(data.sizes.tolist()) == {20}
    assert data.images.max(axis=(1, 2, 3)).min() > 150
    border = np.concatenate(
        [data.images[..., [0, -1]], data.images[..., [0, -1], :].swapaxes(-1, -2)], axis=-1
    )
    assert (border.max(axis=(1, 2, 3)) > 128).mean() < 0.01


def test_neither_trivial_nor_impossible():
    """Raw-pixel cosine nearest neighbour, 5-way 1-shot: about Omniglot's .52, chance .20."""
    sampler = EpisodeSampler(
        load("glyphs", split="test"), ways=5, shots=1, queries=5, tasks=300, seed=0
    )
    support, query = sampler[0]
    features = [
        torch.nn.functional.normalize(s.images.flatten(2), dim=-1) for s in (support, query)
    ]
    guess = (features[1] @ features[0].swapaxes(-1, -2)).argmax(-1)
    accuracy = (guess == query.labels).float().mean().item()
    assert 0.55 < accuracy < 0.66
