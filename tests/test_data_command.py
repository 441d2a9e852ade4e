"""``metasparse data``: what is on disk, what is wrong with it, and decoding it once for all."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support import replicas

from metasparse_ext.cli import main
from metasparse_ext.data import load, reading
from metasparse_ext.data.registry import absolute


def run(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


@pytest.fixture
def root(tmp_path):
    replicas.own_folders(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    root = tmp_path_factory.mktemp("cub")
    replicas.cub(root)
    return root


def test_info_says_what_a_folder_is(root, cub, monkeypatch):
    monkeypatch.setattr(reading.picture, "pixels", lambda *_, **__: pytest.fail("decoded"))
    result = run("info", root)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "folder: folders SPLIT/CLASS, or CLASS with a list",
            "  train 2 classes, 4 images, 2 each",
            "  val   2 classes, 4 images, 2 each",
            "  test  2 classes, 4 images, 2 each",
        ],
    )
    result = run("info", cub)
    assert "cub: the folder images of folders CLASS" in result.stdout
    assert "  train 100 classes, 200 images" in result.stdout


def test_info_of_a_named_set_with_options(cub):
    result = run("info", f"cub:{cub},splits=meta-dataset")
    assert "  train 140 classes, 280 images" in result.stdout


def test_check_decodes_and_names_what_is_wrong(root):
    assert run("check", root).exit_code == 0
    (root / "train" / "cat" / "9.png").write_bytes(b"text")
    (root / "train" / "cat" / "notes.txt").touch()
    Image.new("RGB", (9, 9)).save(root / "val" / "hen" / "9.png")
    result = run("check", root, "--min-images", 3)
    assert result.exit_code == 1
    for line in (
        "left out 1 image that cannot be read: ",
        "left out 1 file of no image format: ",
        "left out 2 classes with fewer than 3 images: cat, dog",
        "images of 2 sizes: --image-size brings them to one",
        "  val   2 classes, 5 images, 2 to 3 each, of 2 sizes from 8x8 to 9x9, 3 channels",
        "  test  2 classes, 4 images, 2 each, 8x8x3",
    ):
        assert line in result.stdout


def test_check_counts_sizes_without_channels(root):
    Image.new("L", (8, 8)).save(root / "val" / "hen" / "9.png")
    result = run("check", root)
    assert result.exit_code == 0
    assert "  val   2 classes, 5 images, 2 to 3 each, of 8x8, 1 or 3 channels" in result.stdout


def test_options_behind_a_folder_are_told_how_to_be_said(root):
    result = run("info", f"{root},splits=x.json")
    assert result.exit_code == 2
    assert f"such as folder:{root},splits=x.json" in result.stderr


def test_check_finds_a_split_or_a_class_that_is_missing(root, tmp_path):
    (root / "test").rename(tmp_path / "elsewhere")
    result = run("check", root)
    assert result.exit_code == 1
    assert "  test  folder: no folder" in result.stdout
    replicas.class_folders(tmp_path / "images", replicas.published_list("cub.chen")["train"][1:])
    result = run("check", f"cub:{tmp_path}")
    assert result.exit_code == 1
    assert "of 1 classes that cub/chen names, such as 001.Black_footed_Albatross" in result.stdout


def test_convert_decodes_once(root, monkeypatch):
    result = run("convert", root, "--image-size", 6)
    assert result.exit_code == 0
    assert "train  <ImageClasses set/train: 2 classes, 4 images of 6x6x3>" in result.stdout
    monkeypatch.setattr(reading.picture, "pixels", lambda *_, **__: pytest.fail("decoded"))
    assert load("folder", root, "val", image_size=6).shape == (3, 6, 6)


def test_convert_writes_a_file_that_is_read_by_its_path(root, tmp_path):
    out = tmp_path / "out" / "set.npz"
    assert run("convert", root, "--out", out).exit_code == 0
    for split in replicas.SPLITS:
        one, other = load("folder", root, split), load(str(out), split=split)
        assert one.class_names == other.class_names
        np.testing.assert_array_equal(one.images, other.images)
    assert f"{out}: an .npz file" in run("info", out).stdout


def test_training_on_folders_with_a_list_of_ones_own(tmp_path):
    replicas.own_list(tmp_path)
    command = f"train maml --data folder,splits={tmp_path}/splits.json --root {tmp_path}"
    task = "--ways 2 --shots 1 --queries 1 --tasks 1 --width 4 --image-size 16"
    short = "--iterations 1 --validation-tasks 1"
    out = f"--out {tmp_path}/run"
    result = CliRunner().invoke(main, f"{command} {task} {short} {out}".split())
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, f"evaluate {tmp_path}/run --tasks 1".split())
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["info", "check", "convert"])
def test_what_is_not_there_or_unknown(command, tmp_path):
    result = run(command, "mnist")
    assert "unknown data set 'mnist'" in result.output
    (tmp_path / "a").mkdir()
    result = run(command, tmp_path)
    assert result.exit_code == 2
    assert "of no known layout: expected folders" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_convert_refuses_what_may_be_two_sets(tmp_path):
    replicas.cifar_folder(tmp_path)
    result = run("convert", tmp_path)
    assert result.exit_code == 2
    assert f"may be cifar-fs or fc100: say NAME:{tmp_path}" in result.stderr
    assert run("convert", f"fc100:{tmp_path}").exit_code == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("folder,splits=x.json,min_images=3", "folder,splits={here}/x.json,min_images=3"),
        ("cub:birds,splits=ye+glyphs", "cub:{here}/birds,splits=ye+glyphs"),
        ("sets/a.npz", "{here}/sets/a.npz"),
        ("folder:/a,b,skip_unreadable=True", "folder:/a,b,skip_unreadable=true"),
        ("package.module:function", "package.module:function"),
        ("folder,nothing=1", "folder,nothing=1"),
        ("omniglot", "omniglot"),
    ],
)
def test_names_with_paths_become_absolute(tmp_path, monkeypatch, text, wanted):
    monkeypatch.chdir(tmp_path)
    assert absolute(text) == wanted.format(here=tmp_path)
    assert absolute(absolute(text)) == absolute(text)


def test_a_folder_above_whose_name_has_a_plus_leaves_a_name_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "a+b").mkdir()
    monkeypatch.chdir(tmp_path / "a+b")
    assert absolute("folder:set") == "folder:set"
