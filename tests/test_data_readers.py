"""Data sets read from files that a user names."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image
from support.data_sets import real_data

from metasparse_ext.data import DATASETS, DataError, DataNotFoundError, load


def arrays(classes, split, each=3, shape=(4, 4), value=0):
    """The arrays of a data file; every image is filled with the index of its row plus value."""
    n = len(classes) * each
    fill = (value + np.arange(n, dtype=np.uint8)).reshape(n, *(1 for _ in shape))
    return {
        "images": np.broadcast_to(fill, (n, *shape)).copy(),
        "labels": np.repeat(np.arange(len(classes)), each),
        "class_names": np.array(classes),
        "split": np.array(split),
    }


@pytest.fixture
def omniglot(tmp_path):
    np.savez(tmp_path / "omniglot28.npz", **arrays(["b", "a", "c"], ["train", "train", "test"]))
    return tmp_path


def test_npz_selects_the_split(omniglot):
    train, test = (load("omniglot", omniglot, split) for split in ("train", "test"))
    assert train.class_names == ("a", "b")
    assert [images[0, 0].item() for images in train.images[:, 0, :1]] == [3, 4, 5, 0, 1, 2]
    assert test.class_names == ("c",)
    assert repr(test) == "<ImageClasses omniglot/test: 1 classes, 3 images of 4x4x1>"


def test_npz_files_are_joined(tmp_path):
    for part, value in (("train_a", 0), ("train_b", 100)):
        np.savez(
            tmp_path / f"cifar_fs_{part}.npz",
            **arrays(["x", "y"], ["train", "train"], shape=(4, 4, 3), value=value),
        )
    np.savez(
        tmp_path / "cifar_fs_val_test.npz", **arrays(["v", "w"], ["val", "test"], shape=(4, 4, 3))
    )
    train = load("cifar-fs", tmp_path, "train")
    assert train.shape == (3, 4, 4)
    assert train.sizes.tolist() == [6, 6]
    assert train[1][:, 0, 0, 0].tolist() == [3, 4, 5, 103, 104, 105]
    assert load("cifar-fs", tmp_path, "val").class_names == ("v",)


def test_root_from_the_environment(omniglot, monkeypatch):
    monkeypatch.setenv("METASPARSE_DATA", str(omniglot))
    assert len(load("omniglot")) == 2


def test_image_size_and_channels(omniglot):
    assert load("omniglot", omniglot, image_size=6, channels=3).shape == (3, 6, 6)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "glyphs"])
class TestNothingThere:
    def test_no_root(self, name, monkeypatch):
        monkeypatch.delenv("METASPARSE_DATA", raising=False)
        with pytest.raises(DataNotFoundError, match=f"{name}: no folder to read from; pass root"):
            load(name)

    def test_missing_root(self, name, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{name}: no folder .*nowhere"):
            load(name, tmp_path / "nowhere")

    def test_empty_root(self, name, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{name}: (nothing|no folder) .*{tmp_path}"):
            load(name, tmp_path)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown data set 'mnist'; known: glyphs, omniglot, "):
        load("mnist")


def test_absent_split(omniglot):
    with pytest.raises(DataError, match="no class in split 'val'; splits there: test, train"):
        load("omniglot", omniglot, "val")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "omniglot28.npz is not an .npz file, or is cut short"),
        (lambda raw: b"no archive", "omniglot28.npz is not an .npz file, or is cut short"),
        (
            lambda raw: raw.replace(bytes([3] * 16), bytes([9] * 16), 1),
            "cannot read .*omniglot28.npz: Bad CRC",
        ),
    ],
    ids=["cut short", "not an archive", "flipped bytes"],
)
def test_damaged_file(omniglot, damage, message):
    path = omniglot / "omniglot28.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load("omniglot", omniglot)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": None}, "lacks the arrays split"),
        ({"split": np.array(["train"])}, r"got \(3,\) and \(1,\)"),
        ({"labels": np.full(9, 3)}, "expected labels from 0 to 2, got 3 to 3"),
        ({"labels": np.full(9, -1)}, "expected labels from 0 to 2, got -1 to -1"),
        ({"labels": np.zeros(9)}, "integer type, got .* float64"),
        ({"labels": np.zeros(8, int)}, r"expected images of shape \(8, H, W\)"),
        ({"labels": np.zeros(9, int)}, "class 'a' has no images"),
        ({"labels": np.full(9, 2)}, "has no images"),
        ({"images": np.zeros((9, 4, 4))}, "type uint8, got .* float64"),
        (
            {"images": np.zeros((9, 4, 4, 2), np.uint8)},
            "expected images to be of shape .* in omniglot/train",
        ),
        ({"class_names": np.array([{}, {}, {}], dtype=object)}, "cannot read .*omniglot28.npz"),
        ({"class_names": np.zeros(3, "i4,f8")}, r"28.npz: array class_names: expected text .*i4"),
        ({"class_names": np.array(["a", "b", "a"])}, "class_names: .* got 'a' twice"),
        ({"class_names": np.arange(3)}, "28.npz: array class_names: expected text"),
        ({"split": np.zeros(3, int)}, "28.npz: array split: expected text .* got type int64"),
        ({"split": np.array([b"train"] * 3)}, r"array split: expected text .* got type \|S5"),
        ({"labels": np.zeros(9, "i4,f8")}, "integer type, got .*i4"),
        ({"images": np.zeros((9, 4, 4), "i4,f8")}, "type uint8, got .*i4"),
    ],
)
def test_malformed_file(omniglot, change, message):
    good = arrays(["b", "a", "c"], ["train", "train", "test"])
    changed = {key: value for key, value in (good | change).items() if value is not None}
    np.savez(omniglot / "omniglot28.npz", **changed)
    with pytest.raises(DataError, match=message):
        load("omniglot", omniglot)


def rewritten(path, change, **options):
    """Writes an archive anew, with ``change`` made to the bytes of its array of labels."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["labels.npy"] = change(content["labels.npy"])
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def header(text):
    data = io.BytesIO()
    np.lib.format.write_array(data, np.zeros(9, int))
    length = len(text).to_bytes(2, "little")
    return data.getvalue()[:8] + length + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        header("{'descr': '<i8', 'shape': ((((" + " " * 5000),
        header("{'descr': '" + "x" * 5000 + "', 'fortran_order': False, 'shape': (9,)}"),
        header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({1 << 70},)}}"),
        b"no array",
        b"",
    ],
    ids=["unclosed", "long", "huge", "no array", "empty"],
)
def test_an_array_with_a_broken_header(omniglot, content):
    path = omniglot / "omniglot28.npz"
    rewritten(path, lambda data: content)
    with pytest.raises(DataError, match=f"array labels of {path}") as refused:
        load("omniglot", omniglot)
    assert len(str(refused.value)) < 300 + len(str(path))


def flagged(data, at, value):
    """An archive in which a 16-bit field of the central record of every entry is changed."""
    changed, start = bytearray(data), data.find(b"PK\x01\x02")
    while start >= 0:
        changed[start + at : start + at + 2] = value.to_bytes(2, "little")
        start = data.find(b"PK\x01\x02", start + 4)
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(8, 1, "encrypted"), (10, 77, "compression method")],
    ids=["encrypted", "unknown compression"],
)
def test_archives_that_zipfile_does_not_read(omniglot, at, value, message):
    path = omniglot / "omniglot28.npz"
    path.write_bytes(flagged(path.read_bytes(), at, value))
    with pytest.raises(DataError, match=f"cannot read array .* of {path}: .*{message}"):
        load("omniglot", omniglot)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_are_refused_unopened(tmp_path, folder):
    os.mkfifo(tmp_path / "omniglot.npz")
    with pytest.raises(DataError, match=r"omniglot.npz is not a regular file"):
        load("omniglot", tmp_path)
    os.mkfifo(folder / "train" / "Latin" / "2.png")
    with pytest.raises(DataError, match=r"2.png: not a regular file"):
        load("folder", folder)


def test_files_that_contradict_each_other(omniglot):
    np.savez(omniglot / "omniglot_more.npz", **arrays(["a"], ["test"]))
    with pytest.raises(DataError, match="class 'a' is in splits 'train' and 'test'"):
        load("omniglot", omniglot)


def test_files_of_different_shapes(omniglot):
    np.savez(omniglot / "omniglot_more.npz", **arrays(["z"], ["train"], shape=(5, 5)))
    with pytest.raises(DataError, match="images of different shapes"):
        load("omniglot", omniglot)


@pytest.fixture
def folder(tmp_path):
    """train/{Greek/alpha, Latin} with grey images whose brightness says which is which."""
    for place, value in (("Greek/alpha", 10), ("Latin", 20)):
        path = tmp_path / "toy" / "train" / place
        path.mkdir(parents=True)
        for index in (1, 0):
            Image.new("L", (6, 6), value + index).save(path / f"{index}.png")
        (path / "notes.txt").touch()
        (path / ".hidden.png").touch()
    return tmp_path / "toy"


def test_folder_of_images(folder):
    data = load("folder", folder)
    assert (str(data), data.shape) == ("toy/train", (1, 6, 6))
    assert data.class_names == ("Greek/alpha", "Latin")
    assert data.images[:, 0, 0, 0].tolist() == [10, 11, 20, 21]


def test_folder_with_a_colour_image_is_rgb(folder):
    Image.new("RGB", (6, 6), (1, 2, 3)).save(folder / "train" / "Latin" / "2.png")
    data = load("folder", folder)
    assert data.shape == (3, 6, 6)
    assert data[1][2, :, 0, 0].tolist() == [1, 2, 3]
    assert data[1][0, :, 0, 0].tolist() == [20, 20, 20]
    assert load("folder", folder, channels=1).shape == (1, 6, 6)


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK"])
def test_folder_image_modes(folder, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (6, 6), "white").convert(mode).save(folder / "train" / "Latin" / f"2.{suffix}")
    assert load("folder", folder)[1][2].min() > 250


def test_folder_of_many_sizes(folder):
    Image.new("L", (8, 4), 99).save(folder / "train" / "Latin" / "2.png")
    with pytest.raises(
        DataError, match=r"such as \(4, 8\) of .*2\.png and \(6, 6\) of .*; image_size brings"
    ):
        load("folder", folder)
    data = load("folder", folder, image_size=5)
    assert data.shape == (1, 5, 5)
    assert data[1][2].min() == data[1][2].max() == 99


def test_folder_image_size_out_of_range(folder):
    with pytest.raises(DataError, match="expected image_size to be at least 1, got 0"):
        load("folder", folder, image_size=0)


def test_folder_absent_split(folder):
    with pytest.raises(DataNotFoundError, match=r"no folder .*toy/val; folders in .*toy: train"):
        load("folder", folder, "val")


def test_folder_with_a_class_in_two_splits(folder):
    path = folder / "val" / "Greek" / "alpha"
    path.mkdir(parents=True)
    assert len(load("folder", folder)) == 2
    Image.new("L", (6, 6), 1).save(path / "0.png")
    message = r"class 'Greek/alpha' is in both .*toy/train and .*toy/val \(1 such classes\)"
    with pytest.raises(DataError, match=message):
        load("folder", folder)
    with pytest.raises(DataError, match=r"is in both .*toy/val and .*toy/train"):
        load("folder", folder, "val")


def test_folder_without_images(folder):
    (folder / "val" / "Latin").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match=r"no images .*toy/val/CLASS/\*, with a suffix of"):
        load("folder", folder, "val")


def test_folder_with_a_damaged_image(folder):
    path = folder / "train" / "Latin" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot read .*Latin/0\.png"):
        load("folder", folder)


def test_folder_with_deep_images(folder):
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(folder / "train" / "Latin" / "2.png")
    with pytest.raises(DataError, match="expected 8-bit images, got mode 'I;16'"):
        load("folder", folder)


@pytest.mark.parametrize(("split", "classes"), [("train", 1028), ("val", 172), ("test", 423)])
def test_real_omniglot(split, classes):
    data = load("omniglot", real_data("omniglot*.npz"), split)
    assert (len(data), data.shape, set(data.sizes.tolist())) == (classes, (1, 28, 28), {20})
    assert 0.05 < data.images.mean() / 255 < 0.12  # strokes are bright


def test_real_cifar_fs():
    root = real_data("cifar_fs_val_test.npz")
    val, test = (load("cifar-fs", root, split) for split in ("val", "test"))
    assert (len(val), len(test), test.shape) == (16, 20, (3, 32, 32))
    assert set(val.sizes.tolist()) == set(test.sizes.tolist()) == {600}
    assert not set(val.class_names) & set(test.class_names)
