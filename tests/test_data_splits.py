"""Lists of the classes of each split: those that ship, and one's own in every format."""

import json
from importlib.resources import files

import pytest
from support import replicas
from support.replicas import OWN

from metasparse_ext.data import DataError, DataNotFoundError, load, published
from metasparse_ext.data.splits import read_split_list

# Classes of each split, as published.
SIZES = {
    "omniglot.vinyals": (1028, 172, 423),
    "omniglot.lake": (964, 0, 659),
    "mini-imagenet.ravi": (64, 16, 20),
    "tiered-imagenet.ren": (351, 97, 160),
    "cifar-fs.bertinetto": (64, 16, 20),
    "fc100.oreshkin": (60, 20, 20),
    "cub.chen": (100, 50, 50),
    "cub.ye": (100, 50, 50),
    "cub.meta-dataset": (140, 30, 30),
    "aircraft.meta-dataset": (70, 15, 15),
    "flowers.meta-dataset": (71, 15, 16),
    "fungi.meta-dataset": (994, 200, 200),
}


def shipped():
    folder = files("metasparse_ext.data") / "split_lists"
    return {
        file.name.removesuffix(".json"): json.loads(file.read_text()) for file in folder.iterdir()
    }


def test_every_list_has_its_source_and_its_classes():
    lists = shipped()
    assert set(lists) == set(SIZES), "a row of SIZES for each file of split_lists"
    for name, held in lists.items():
        assert held.pop("source").strip()
        assert tuple(len(held.get(split, ())) for split in replicas.SPLITS) == SIZES[name], name
        classes = [each for part in held.values() for each in part]
        assert len(set(classes)) == len(classes), "a class is in two splits"
        assert set(held) <= set(replicas.SPLITS)


def test_lists_of_one_data_set_have_the_same_classes():
    lists = shipped()
    for dataset in ("omniglot", "cub"):
        every = [
            {each for part in held.values() if isinstance(part, list) for each in part}
            for name, held in lists.items()
            if name.startswith(f"{dataset}.")
        ]
        assert len(every) > 1
        assert all(classes == every[0] for classes in every)
    hundred = [
        {each for part in lists[name].values() if isinstance(part, list) for each in part}
        for name in ("cifar-fs.bertinetto", "fc100.oreshkin")
    ]
    assert hundred[0] == hundred[1]
    assert len(hundred[0]) == 100


def test_chen_takes_every_second_class():
    held = replicas.published_list("cub.chen")
    every = sorted(name for part in held.values() for name in part)
    assert (held["train"], held["val"], held["test"]) == (every[::2], every[1::4], every[3::4])


def test_the_default_comes_first():
    assert published("omniglot") == ("vinyals", "lake")
    assert published("cub")[0] == "chen"
    assert published("mini-imagenet") == ("ravi",)
    assert published("folder") == ()


def as_json(path):
    file = path / "list.json"
    renamed = {"valid" if split == "val" else split: names for split, names in OWN.items()}
    file.write_text(json.dumps({"source": "mine", **renamed}))
    return file


def as_csv(path):
    lines = [f"{name},{split}" for split, names in OWN.items() for name in names]
    (path / "list.csv").write_text("label,split\n" + "\n".join(lines))
    return path / "list.csv"


def as_text(path):
    lines = [f"{split}  {name}" for split, names in OWN.items() for name in names]
    (path / "list.txt").write_text("# mine\n\n" + "\n".join(lines))
    return path / "list.txt"


def as_folder_of_lines(path):
    (path / "lists").mkdir()
    for split, names in OWN.items():
        (path / "lists" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return path / "lists"


def as_folder_of_tables(path):
    (path / "lists").mkdir()
    for split, names in OWN.items():
        rows = [f"{i}.jpg,{name}" for name in names for i in range(3)]
        (path / "lists" / f"{split}.csv").write_text("filename,label\n" + "\n".join(rows))
    return path / "lists"


FORMS = (as_json, as_csv, as_text, as_folder_of_lines, as_folder_of_tables)


@pytest.mark.parametrize("make", FORMS)
def test_every_format_of_ones_own_list(make, tmp_path):
    read = read_split_list(make(tmp_path))
    assert {split: list(names) for split, names in read.classes.items()} == OWN
    if make is as_json:
        assert read.source == "mine"


@pytest.mark.parametrize("make", FORMS)
def test_a_list_of_ones_own_is_loaded(make, tmp_path):
    replicas.own_list(tmp_path)
    (tmp_path / "listed").mkdir()
    data = load("folder", tmp_path, "test", splits=make(tmp_path / "listed"))
    assert data.class_names == ("fox", "owl")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "expected a JSON object, got list"),
        ("a.json", "{", "cannot read"),
        ("a.json", '{"train": "cat"}', "expected the classes of 'train' to be a list of texts"),
        ("a.json", '{"training": ["cat"]}', "names train, val, test, got 'training'"),
        ("a.json", "{}", "expected classes, got none"),
        ("a.csv", "name,part\n", r"expected a column 'class', got \['name', 'part'\]"),
        ("a.csv", "class,part\n", "expected a column 'split'"),
        ("a.csv", "class,split\ncat,train\ndog\n", "csv, line 3: expected 'split' and 'class'"),
        ("a.json", "[" * 100_000, "a.json: not JSON"),
        ("a.txt", "train\n", "expected lines SPLIT CLASS, got 'train'"),
        ("a.txt", "train cat\ntest cat\n", "class 'cat' is in 'train' and 'test'; allow_overlap"),
        ("a.yaml", "train: cat\n", "expected FILE.json, FILE.csv"),
    ],
)
def test_lists_that_do_not_serve(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"splits: .*{message}"):
        read_split_list(tmp_path / name)


def test_a_class_in_two_splits_if_one_asks_for_it(tmp_path):
    (tmp_path / "a.txt").write_text("train cat\ntest cat\n")
    read = read_split_list(tmp_path / "a.txt", allow_overlap=True)
    assert read.of("train") == read.of("test") == ("cat",)


def test_a_list_that_is_not_there(tmp_path):
    replicas.class_folders(tmp_path / "images", replicas.published_list("cub.chen")["train"])
    message = "cub: expected splits to be one of chen, meta-dataset, ye, or FILE.json, .*'chan'"
    with pytest.raises(DataNotFoundError, match=message):
        load("cub", tmp_path, splits="chan")
