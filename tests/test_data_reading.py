"""Decoding of image files: what becomes of each, what is left out, what is kept for next time."""

import io
import os
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image
from support import replicas

from metasparse_ext.data import DataError, load, pixel_cache, reading
from metasparse_ext.data.picture import suffixes

pytestmark = pytest.mark.filterwarnings("ignore:.*left out")


@pytest.fixture
def root(tmp_path):
    """train/{cat,dog} and so on, two images of one colour each."""
    replicas.own_folders(tmp_path / "set")
    return tmp_path / "set"


def add(root, image, name="9.png", **options):
    """Adds an image to the cats and reads it back alone, (C, H, W)."""
    path = root / "train" / "cat" / name
    image.save(path, **options)
    return load("folder", root)[0][-1]


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    for name in ("a", "b"):
        path = tmp_path / "train" / name / f"0.{suffix}"
        path.parent.mkdir(parents=True)
        Image.fromarray(stored).save(path, exif=exif(orientation), quality=100)
    data = load("folder", tmp_path, allow_overlap=True)
    assert abs(data.images[0, 0] - upright.astype(int)).max() < 20


@pytest.mark.parametrize(("ground", "expected"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_shows_the_ground(root, mode, ground, expected):
    clear = Image.new("RGBA", (8, 8), (90, 90, 90, 0))
    options = {}
    if mode in ("RGB", "L"):
        options["transparency"] = (90, 90, 90) if mode == "RGB" else 90
        clear = clear.convert("RGB").convert(mode)
    elif mode == "P":
        clear = clear.convert("RGB").quantize(4)
        options["transparency"] = clear.getpixel((0, 0))
    else:
        clear = clear.convert(mode)
    clear.save(root / "train" / "cat" / "9.png", **options)
    assert set(load("folder", root, ground=ground)[0][-1].ravel()) == {expected}


def test_half_transparency_is_blended(root):
    assert set(add(root, Image.new("RGBA", (8, 8), (0, 0, 0, 128))).ravel()) == {127}


@pytest.mark.parametrize("suffix", ["pgm", "ppm", "bmp", "gif", "webp", "tif", "jp2", "tga", "PNG"])
def test_every_format_of_pillow(root, suffix):
    image = Image.new("L" if suffix == "pgm" else "RGB", (8, 8), 100 if suffix == "pgm" else "red")
    read = add(root, image, f"9.{suffix}")
    assert read.shape == (3, 8, 8)
    assert abs(read[0].astype(int) - (100 if suffix == "pgm" else 255)).max() < 5


def test_stray_suffixes_are_none():
    assert {".pgm", ".png", ".jpeg", ".jp2"} <= suffixes()
    assert not {".h5", ".pdf", ".txt", ".mpg"} & suffixes()


def test_crop_keeps_the_middle_and_squash_all(tmp_path):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / "train" / name / "0.png")
    crop, squash = (load("folder", tmp_path, image_size=8, fit=fit) for fit in ("crop", "squash"))
    assert crop.images.min() == 255
    assert squash.images[0, 0, :, 0].max() < 50
    assert squash.images[0, 0, :, 4].min() > 200


def test_sizes_are_compared_before_anything_is_decoded(root, monkeypatch):
    Image.new("RGB", (9, 8)).save(root / "train" / "dog" / "9.png")
    monkeypatch.setattr(reading.picture, "pixels", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"\(8, 8\) of .* and \(8, 9\) of .*9.png; image_size"):
        load("folder", root)


def damage(root):
    """A file that is no image, and one that is cut short behind its header."""
    cats = root / "train" / "cat"
    (cats / "7.png").write_bytes(b"text")
    noise = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "BMP")
    (cats / "8.bmp").write_bytes(whole.getvalue()[:80])
    return cats


def test_unreadable_images_are_an_error_or_counted(root):
    cats = damage(root)
    with pytest.raises(DataError, match=r"set: cannot read .*cat/7\.png: not of a known image"):
        load("folder", root)
    (cats / "7.png").unlink()
    with pytest.raises(DataError, match=r"set: cannot read .*cat/8\.bmp: .*truncated"):
        load("folder", root)
    damage(root)
    with pytest.warns(UserWarning, match=r"left out 2 images that cannot be read: .*7\.png, .*8"):
        data = load("folder", root, skip_unreadable=True)
    assert data.sizes.tolist() == [2, 2]
    assert data[0].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("cache", [True, False])
def test_small_classes_are_left_out(root, cache):
    Image.new("RGB", (8, 8)).save(root / "train" / "dog" / "9.png")
    (root / "train" / "ant").mkdir()
    Image.new("RGB", (8, 8), "blue").save(root / "train" / "ant" / "0.png")
    with pytest.warns(UserWarning, match="left out 2 classes with fewer than 3 images: ant, cat"):
        data = load("folder", root, min_images=3, cache=cache)
    assert data.class_names == ("dog",)
    with pytest.raises(DataError, match="no class of split train has 4"):
        load("folder", root, min_images=4, cache=cache)


@pytest.mark.parametrize("cache", [True, False])
def test_a_class_that_shrinks_as_it_is_decoded_is_taken_back(root, cache):
    cats = damage(root)
    (cats / "7.png").unlink()
    Image.new("RGB", (8, 8)).save(root / "train" / "dog" / "9.png")
    (root / "train" / "eel").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), "blue").save(root / "train" / "eel" / f"{number}.png")
    data = load("folder", root, min_images=3, skip_unreadable=True, cache=cache)
    assert data.class_names == ("dog", "eel")
    assert data.sizes.tolist() == [3, 3]
    assert (data[1] == np.array([0, 0, 255])[:, None, None]).all()
    assert [note for note in data.notes if "cat" in note]


def test_strays_are_named(root):
    (root / "train" / "cat" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"left out 1 file of no image format: .*cat/notes\.txt"):
        load("folder", root)


def test_hidden_files_and_folders_are_passed_over(root):
    for place in (root / "train" / ".trash", root / "train" / "cat" / ".thumbs"):
        place.mkdir()
        Image.new("L", (5, 5)).save(place / "0.png")
    Image.new("L", (5, 5)).save(root / "train" / "cat" / "._0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("folder", root).class_names == ("cat", "dog")


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    (root / "train" / "cat" / "self").symlink_to(".")
    (root / "train" / "cat" / "up").symlink_to("../..")
    replicas.class_folders(tmp_path / "elsewhere", ["yak"], "png")
    (root / "train" / "yak").symlink_to(tmp_path / "elsewhere" / "yak")
    assert load("folder", root).class_names == ("cat", "dog", "yak")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(root):
    (root / "train" / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match=r"cannot read folder .*cat: Permission denied"):
            load("folder", root)
    finally:
        (root / "train" / "cat").chmod(0o700)


def test_flat_folders_are_refused_with_the_mend(root):
    Image.new("L", (8, 8)).save(root / "train" / "0.png")
    message = r"1 images lie in .*train itself, such as 0.png; expected a folder of images for each"
    with pytest.raises(DataError, match=message):
        load("folder", root)


def test_one_class_is_refused_with_the_mend(tmp_path):
    replicas.class_folders(tmp_path / "train", ["images"], "png")
    with pytest.raises(DataError, match=r"expected several classes .* got one, 'images'.*side by"):
        load("folder", tmp_path)


class TestOverlap:
    def test_classes(self, root):
        (root / "val" / "hen").rename(root / "val" / "dog")
        with pytest.raises(DataError, match=r"class 'dog' is in both .*train and .*val"):
            load("folder", root)
        assert len(load("folder", root, allow_overlap=True)) == 2
        assert len(load(f"folder:{root},allow_overlap=true")) == 2

    def test_files(self, root):
        replicas.write(
            root / "test" / "owl" / "9.png", (root / "train" / "dog" / "1.png").read_bytes()
        )
        message = r"dog/0.png and .*owl/9.png are the same file, byte for byte, .*\(1 such files\)"
        with pytest.raises(DataError, match=message):
            load("folder", root)
        assert load("folder", root, "test", allow_overlap=True).sizes.tolist() == [2, 3]
        (root / "test" / "owl" / "9.png").unlink()
        load("folder", root)

    def test_what_was_kept_is_not_taken_once_a_copy_has_come(self, root):
        load("folder", root)
        replicas.write(
            root / "val" / "hen" / "9.png", (root / "train" / "dog" / "1.png").read_bytes()
        )
        with pytest.raises(DataError, match="the same file"):
            load("folder", root)

    def test_files_of_a_list_of_ones_own(self, tmp_path):
        replicas.own_list(tmp_path)
        (tmp_path / "owl" / "9.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes())
        with pytest.raises(DataError, match=r"cat/0.png and .*owl/9.png are the same file"):
            load("folder", tmp_path, splits=tmp_path / "splits.json")


class TestCache:
    def test_images_are_decoded_once_and_mapped_from_then_on(self, root, monkeypatch):
        first = load("folder", root)
        monkeypatch.setattr(reading.picture, "header", lambda *_: pytest.fail("read"))
        monkeypatch.setattr(reading.picture, "pixels", lambda *_, **__: pytest.fail("read"))
        again = load("folder", root)
        assert isinstance(again.images, np.memmap)
        np.testing.assert_array_equal(first.images, again.images)
        assert first.class_names == again.class_names

    def test_a_file_or_an_option_that_changes_decodes_anew(self, root):
        before = load("folder", root)
        Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "train" / "cat" / "0.png")
        after = load("folder", root)
        assert before[0][0, :, 0, 0].tolist() != after[0][0, :, 0, 0].tolist() == [1, 2, 3]
        assert load("folder", root, image_size=4).shape == (3, 4, 4)
        (root / "train" / "cat" / "0.png").unlink()
        assert load("folder", root).sizes.tolist() == [1, 2]

    @pytest.mark.parametrize("size", [0, 10, 100, -1])
    def test_a_damaged_file_is_made_anew(self, root, size, monkeypatch, tmp_path):
        monkeypatch.setattr(pixel_cache, "cache_folder", lambda: tmp_path / "kept")
        whole = load("folder", root).images.tobytes()
        (path,) = (tmp_path / "kept").iterdir()
        data = path.read_bytes()
        path.write_bytes(data[:size])
        assert load("folder", root).images.tobytes() == whole
        assert path.read_bytes() == data

    def test_a_folder_that_cannot_be_written(self, root, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setattr(pixel_cache, "cache_folder", lambda: tmp_path / "file" / "kept")
        with pytest.warns(UserWarning, match="cannot be kept.*METASPARSE_CACHE names another"):
            data = load("folder", root)
        np.testing.assert_array_equal(data.images, load("folder", root, cache=False).images)

    def test_no_home_folder(self, root, monkeypatch):
        def nowhere():
            raise DataError("there is no home folder")

        monkeypatch.setattr(pixel_cache, "cache_folder", nowhere)
        with pytest.warns(UserWarning, match="cannot be kept.*there is no home folder"):
            assert len(load("folder", root)) == 2

    def test_a_full_disk(self, root, monkeypatch, tmp_path):
        monkeypatch.setattr(pixel_cache, "cache_folder", lambda: tmp_path / "kept")
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr(reading.shutil, "disk_usage", lambda _: usage)
        with pytest.warns(UserWarning, match="GiB needed in .*kept, 0.0 GiB free"):
            load("folder", root)
        assert not list((tmp_path / "kept").iterdir())

    def test_an_error_leaves_no_file(self, root, monkeypatch, tmp_path):
        monkeypatch.setattr(pixel_cache, "cache_folder", lambda: tmp_path / "kept")
        (damage(root) / "7.png").unlink()
        with pytest.raises(DataError):
            load("folder", root)
        assert not list((tmp_path / "kept").iterdir())

    def test_one_copy_of_the_images_is_written_without_being_held(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / "train" / name).mkdir(parents=True)
            for number in range(100):
                Image.new("RGB", (96, 96)).save(tmp_path / "train" / name / f"{number}.png")
        tracemalloc.start()
        data = load("folder", tmp_path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < data.images.nbytes / 2


def test_a_progress_bar_on_a_terminal_alone(root, monkeypatch, capfd):
    load("folder", root, cache=False)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(reading, "_MANY", 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    load("folder", root, cache=False)
    out, shown = capfd.readouterr()
    assert not out
    assert "set: images" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cub,splits", "expected options to be of fit, .* each as NAME=VALUE, got 'splits'"),
        ("cub,color=1", "got 'color=1'"),
        ("folder:/a,b,min_images=x", "min_images: expected a whole number, got 'x'"),
        ("cub,skip_unreadable=yes", "skip_unreadable: expected true or false, got 'yes'"),
        ("cub,fit=stretch", "expected fit to be one of 'squash', 'crop', got 'stretch'"),
        ("cub:", "expected a path after cub:, got nothing"),
        ("folder:/no/such,b", "no folder /no/such,b/train"),
    ],
)
def test_options_in_a_name(text, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(text, tmp_path)
