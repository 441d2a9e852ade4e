"""Standard image sets as they lie on disk, each row of the README's table on a small copy."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from support import replicas

from metasparse_ext.data import DataError, DataNotFoundError, load, published

README = Path(__file__).resolve().parent.parent / "README.md"


class Row(NamedTuple):
    """A row of the table: the data set, what makes a copy, and the list of its classes."""

    data: str
    make: object
    classes: str


# By what the README's table says is on disk.
ROWS = {
    "`images_background.zip`, `images_evaluation.zip`": Row(
        "omniglot", replicas.omniglot_zips, "omniglot.vinyals"
    ),
    "`images_background/`, `images_evaluation/`": Row(
        "omniglot", replicas.omniglot_folders, "omniglot.vinyals"
    ),
    "`mini-imagenet-cache-{train,val,test}.pkl`": Row(
        "mini-imagenet", replicas.mini_pickles, "mini-imagenet.ravi"
    ),
    "`{train,val,test}.csv`, `images/`": Row(
        "mini-imagenet", replicas.mini_tables, "mini-imagenet.ravi"
    ),
    "`images/n0153282900000005.jpg`, ...": Row(
        "mini-imagenet", replicas.mini_images, "mini-imagenet.ravi"
    ),
    "`{train,val,test}/n01532829/*.jpg`": Row(
        "mini-imagenet", replicas.by_split("mini-imagenet.ravi"), "mini-imagenet.ravi"
    ),
    "`n01532829/*.jpg`": Row(
        "mini-imagenet", replicas.by_class("mini-imagenet.ravi"), "mini-imagenet.ravi"
    ),
    "`{train,val,test}_images_png.pkl`, `..._labels.pkl`": Row(
        "tiered-imagenet", replicas.tiered_pickles, "tiered-imagenet.ren"
    ),
    "`{train,val,test}_images.npz`, `..._labels.pkl`": Row(
        "tiered-imagenet", replicas.tiered_arrays, "tiered-imagenet.ren"
    ),
    "`train/n01530575/*.JPEG`, as ImageNet": Row(
        "tiered-imagenet",
        replicas.by_class("tiered-imagenet.ren", "train"),
        "tiered-imagenet.ren",
    ),
    "`CIFAR_FS_{train,val,test}.pickle`": Row(
        "cifar-fs",
        replicas.numbered_pickles("cifar-fs.bertinetto", "CIFAR_FS_{}.pickle"),
        "cifar-fs.bertinetto",
    ),
    "`cifar100/data/apple/*.png`": Row(
        "cifar-fs",
        replicas.by_class("cifar-fs.bertinetto", "cifar100/data", "png"),
        "cifar-fs.bertinetto",
    ),
    "`cifar-100-python.tar.gz`": Row("cifar-fs", replicas.cifar_packed, "cifar-fs.bertinetto"),
    "`cifar-100-python/{train,test,meta}`": Row("fc100", replicas.cifar_folder, "fc100.oreshkin"),
    "`FC100_{train,val,test}.pickle`": Row(
        "fc100", replicas.numbered_pickles("fc100.oreshkin", "FC100_{}.pickle"), "fc100.oreshkin"
    ),
    "`CUB_200_2011/images/001.Black_footed_Albatross/*.jpg`": Row("cub", replicas.cub, "cub.chen"),
    "`fgvc-aircraft-2013b/data/`": Row("aircraft", replicas.aircraft, "aircraft.meta-dataset"),
    "`jpg/`, `imagelabels.mat`": Row("flowers", replicas.flowers, "flowers.meta-dataset"),
    "`train.json`, `val.json`, `images/`": Row("fungi", replicas.fungi, "fungi.meta-dataset"),
    "`{train,val,test}/CLASS/*`": Row("folder", replicas.own_folders, ""),
    "`CLASS/*`, a list of your own": Row("folder,splits={root}/splits.json", replicas.own_list, ""),
    "an `.npz` file": Row("{root}/set.npz", replicas.own_file, ""),
}
# Of these the layout has numbers in place of names.
NUMBERED = {"`CIFAR_FS_{train,val,test}.pickle`", "`FC100_{train,val,test}.pickle`"}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Makes the copy of a row once."""
    made = {}

    def copy(row):
        if row not in made:
            made[row] = tmp_path_factory.mktemp("copy")
            ROWS[row].make(made[row])
        return made[row]

    return copy


@pytest.mark.parametrize("row", ROWS)
def test_a_layout_is_read_by_its_name(row, copies):
    data, _, lists = ROWS[row]
    root = copies(row)
    classes = replicas.published_list(lists) if lists else replicas.OWN
    for split, names in classes.items():
        read = load(data.replace("{root}", str(root)), root, split)
        names = sorted(names)
        if row in NUMBERED:
            # The numbers of the copy follow the order of the list.
            names = classes[split]
            assert read.class_names == tuple(f"{split}-{i:03}" for i in range(len(names)))
        else:
            assert read.class_names == tuple(names)
        assert set(read.sizes.tolist()) == {replicas.EACH}
        if data == "omniglot":
            side = replicas.SIDE
            drawn = [sum(name.encode()) % side for name in names for _ in range(replicas.EACH)]
            bright = (np.arange(side) < np.array(drawn)[:, None]) * 255
            np.testing.assert_array_equal(read.images[:, 0, 0], bright)
            assert not read.images[:, 0, 1:].any()
        else:
            colours = np.array([replicas.colour(name) for name in names])
            error = read.images - np.repeat(colours, replicas.EACH, axis=0)[:, :, None, None]
            assert abs(error).max() <= replicas.BLUR


def test_the_readme_lists_these_layouts():
    text = README.read_text("utf-8")
    table = text[text.index("| on disk |") :].split("\n\n", 1)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert [on_disk for on_disk, _ in rows] == list(ROWS)
    for on_disk, command in rows:
        data = re.search(r"--data (\S+)", command).group(1)
        assert data == ROWS[on_disk].data.replace("{root}", "DIR"), on_disk


def test_the_train_folder_of_imagenet_is_not_the_training_split(copies):
    root = copies("`train/n01530575/*.JPEG`, as ImageNet")
    with pytest.raises(DataNotFoundError, match="mini-imagenet: nothing of split train"):
        load("mini-imagenet", root)


@pytest.mark.parametrize("name", ["omniglot", "mini-imagenet", "cub", "aircraft"])
def test_the_root_may_be_the_folder_around_it(name, copies, tmp_path):
    row = next(row for row in ROWS if ROWS[row].data == name)
    around = {"cub": "CUB_200_2011", "aircraft": "fgvc-aircraft-2013b"}.get(name, name)
    inside = copies(row) / around if (copies(row) / around).is_dir() else copies(row)
    (tmp_path / around).symlink_to(inside)
    outer, inner = load(name, tmp_path, "val"), load(name, inside, "val")
    np.testing.assert_array_equal(outer.images, inner.images)


CUB = "`CUB_200_2011/images/001.Black_footed_Albatross/*.jpg`"
AIRCRAFT = "`fgvc-aircraft-2013b/data/`"


@pytest.mark.parametrize("chosen", published("cub"))
def test_a_published_list_is_chosen_by_name(chosen, copies):
    expected = replicas.published_list(f"cub.{chosen}")["val"]
    for data in (
        load("cub", copies(CUB), "val", splits=chosen),
        load(f"cub:{copies(CUB)},splits={chosen}", split="val"),
    ):
        assert data.class_names == tuple(sorted(expected))


def test_lake_split_has_no_val(copies):
    root = copies("`images_background/`, `images_evaluation/`")
    assert len(load("omniglot", root, splits="lake")) == 964
    assert len(load("omniglot", root, "test", splits="lake")) == 659
    with pytest.raises(DataError, match="omniglot/lake: no class in split 'val'; splits there: tr"):
        load("omniglot", root, "val", splits="lake")


def test_rotations_as_classes(copies):
    data = load("omniglot", copies("`images_background/`, `images_evaluation/`"), "val")
    turned = load(
        "omniglot,rotated_classes=true", copies("`images_background/`, `images_evaluation/`"), "val"
    )
    assert len(turned) == 4 * 172
    assert turned.class_names[:2] == (data.class_names[0], f"{data.class_names[0]}/rot090")
    for index in (0, 100):
        for quarters in range(4):
            expected = np.rot90(data[index], quarters, (-2, -1))
            np.testing.assert_array_equal(turned[4 * index + quarters], expected)


def test_bounding_boxes(copies):
    whole = load("aircraft", copies(AIRCRAFT), "val", bounding_boxes=False)
    assert whole.shape == (3, replicas.SIDE + 4, replicas.SIDE)
    assert whole.images[:, :, -1].min() == 255, "the banner"
    cut = load("cub", copies(CUB), "val", bounding_boxes=True)
    assert cut.shape == (3, 6, 4)


def test_options_that_mean_nothing_here_are_refused(copies):
    for row, option in (
        ("`mini-imagenet-cache-{train,val,test}.pkl`", {"splits": "ravi"}),
        ("an `.npz` file", {"splits": "ravi"}),
        ("`jpg/`, `imagelabels.mat`", {"bounding_boxes": True}),
    ):
        data = ROWS[row].data.replace("{root}", str(copies(row)))
        (name,) = option
        with pytest.raises(DataError, match=f"expected {name} to be (None|False), as .* got"):
            load(data, copies(row), **option)


def test_classes_that_are_missing_are_named(tmp_path):
    replicas.class_folders(tmp_path / "images", replicas.published_list("cub.chen")["train"][2:])
    message = r"cub: no images in .* of 2 classes that cub/chen names, such as 001.Black_footed"
    with pytest.raises(DataError, match=message):
        load("cub", tmp_path)


def test_an_image_that_is_missing_is_named(copies, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "train.csv").write_text("filename,label\na.jpg,cat\n")
    with pytest.raises(DataError, match=r"1 of 1 images that .*train.csv names .* such as a.jpg"):
        load("mini-imagenet", tmp_path)


@pytest.mark.parametrize("name", [row.data for row in ROWS.values() if row.classes])
def test_an_empty_folder_is_told_what_was_looked_for(name, tmp_path):
    (tmp_path / "other").mkdir()
    told = f"{name}: nothing of split train in {tmp_path}; looked for .*; there: other$"
    with pytest.raises(DataNotFoundError, match=told):
        load(name, tmp_path)


def test_a_folder_too_deep_is_told_of_the_one_above(copies):
    root = copies(CUB) / "CUB_200_2011"
    with pytest.raises(DataNotFoundError, match=f"it is in the folder above, {root}$"):
        load("cub", root / "images")


class TestPickles:
    def damaged(self, tmp_path, held, message, name="mini-imagenet-cache-train.pkl"):
        replicas.write(tmp_path / name, replicas.dumped(held))
        with pytest.raises(DataError, match=message):
            load("cifar-fs" if "CIFAR" in name else "mini-imagenet", tmp_path)

    def test_other_content(self, tmp_path):
        images = np.zeros((4, 2, 2, 3), np.uint8)
        self.damaged(tmp_path, [1], "expected a dict, got list")
        self.damaged(tmp_path, {"image_data": images}, "got no class_dict")
        self.damaged(
            tmp_path, {"image_data": images / 2, "class_dict": {}}, "type uint8, got float64"
        )
        self.damaged(
            tmp_path, {"image_data": images, "class_dict": {"a": [4]}}, "integers from 0 to 3"
        )
        self.damaged(
            tmp_path, {"image_data": images, "class_dict": {"a": [-1]}}, "integers from 0 to 3"
        )
        self.damaged(
            tmp_path,
            {"data": images, "labels": [1]},
            "expected labels to be 4 integers",
            "CIFAR_FS_train.pickle",
        )

    def test_cut_short(self, tmp_path):
        data = replicas.dumped({"image_data": np.zeros((4, 2, 2, 3), np.uint8), "class_dict": {}})
        replicas.write(tmp_path / "mini-imagenet-cache-train.pkl", data[:-30])
        with pytest.raises(DataError, match=r"cannot read .*cache-train.pkl"):
            load("mini-imagenet", tmp_path)

    def test_the_name_validation_is_val(self, tmp_path):
        replicas.mini_pickles(tmp_path)
        path = tmp_path / "mini-imagenet-cache-val.pkl"
        path.rename(path.with_name("mini-imagenet-cache-validation.pkl"))
        assert len(load("mini-imagenet", tmp_path, "val")) == 16
