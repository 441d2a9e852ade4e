"""Small copies of image sets as they lie on disk: the real names, every picture of one colour.

The colour says which class a picture is of.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")
SIDE = 8
EACH = 2
OWN = {"train": ["cat", "dog"], "val": ["cow", "hen"], "test": ["fox", "owl"]}
_STEP = 12
BLUR = 5  # what JPEG changes of a colour at most, less than half a step
_TONES = 20


def published_list(name: str) -> dict[str, list[str]]:
    """The classes of each split of a list that ships, such as ``cub.chen``."""
    text = (files("metasparse_ext.data") / "split_lists" / f"{name}.json").read_text("utf-8")
    return {split: names for split, names in json.loads(text).items() if split in SPLITS}


def colour(name: str) -> tuple[int, int, int]:
    """The colour of a class: one of 8,000, in steps that decoded JPEG files do not blur."""
    code = zlib.crc32(name.encode())
    return tuple(_STEP * (1 + code // _TONES**channel % _TONES) for channel in range(3))


def picture(name: str, side: int = SIDE) -> Image.Image:
    return Image.new("RGB", (side, side), colour(name))


def pixels(name: str, side: int = SIDE) -> np.ndarray:
    return np.asarray(picture(name, side))


def encoded(name: str, kind: str = "PNG", side: int = SIDE) -> bytes:
    file = io.BytesIO()
    picture(name, side).save(file, kind)
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def class_folders(root: Path, names: list[str], suffix: str = "jpg") -> None:
    for name in names:
        data = encoded(name, {"jpg": "JPEG", "png": "PNG"}[suffix])
        for number in range(EACH):
            write(root / name / f"{number}.{suffix}", data)


def dumped(value: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def omniglot_png(name: str) -> bytes:
    """Dark on white, one bit a pixel, as the drawings of Omniglot are."""
    drawn = np.full((SIDE, SIDE), 255, np.uint8)
    drawn[0, : sum(name.encode()) % SIDE] = 0
    file = io.BytesIO()
    Image.fromarray(drawn).convert("1").save(file, "PNG")
    return file.getvalue()


def omniglot_files() -> dict[str, dict[str, bytes]]:
    """The files of the two parts by their path."""
    parts = published_list("omniglot.lake")
    return {
        folder: {
            f"{folder}/{name}/{number:04}_{drawer:02}.png": omniglot_png(name)
            for number, name in enumerate(parts[split])
            for drawer in range(1, EACH + 1)
        }
        for folder, split in (("images_background", "train"), ("images_evaluation", "test"))
    }


def omniglot_folders(root: Path) -> None:
    for held in omniglot_files().values():
        for path, data in held.items():
            write(root / path, data)


def omniglot_zips(root: Path) -> None:
    for folder, held in omniglot_files().items():
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            for path, data in held.items():
                archive.writestr(path, data)


def mini_pickles(root: Path) -> None:
    for split, names in published_list("mini-imagenet.ravi").items():
        held = {
            "image_data": np.stack([pixels(name) for name in names for _ in range(EACH)]),
            "class_dict": {
                name: list(range(EACH * i, EACH * (i + 1))) for i, name in enumerate(names)
            },
        }
        write(root / f"mini-imagenet-cache-{split}.pkl", dumped(held))


def mini_tables(root: Path, *, tables: bool = True) -> None:
    for split, names in published_list("mini-imagenet.ravi").items():
        lines = ["filename,label"]
        for name in names:
            for number in range(EACH):
                file = f"{name}{number:08}.jpg"
                lines.append(f"{file},{name}")
                write(root / "images" / file, encoded(name, "JPEG"))
        if tables:
            (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def mini_images(root: Path) -> None:
    mini_tables(root, tables=False)


def by_split(dataset: str, suffix: str = "jpg") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for split, names in published_list(dataset).items():
            class_folders(root / split, names, suffix)

    return make


def by_class(dataset: str, inside: str = ".", suffix: str = "jpg") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for names in published_list(dataset).values():
            class_folders(root / inside, names, suffix)

    return make


def tiered_labels(root: Path, split: str, names: list[str]) -> None:
    held = {
        "label_specific": np.repeat(np.arange(len(names)), EACH),
        "label_general": np.zeros(EACH * len(names), int),
        "label_specific_str": names,
        "label_general_str": ["all"],
    }
    write(root / f"{split}_labels.pkl", dumped(held))


def tiered_pickles(root: Path) -> None:
    for split, names in published_list("tiered-imagenet.ren").items():
        tiered_labels(root, split, names)
        rows = [np.frombuffer(encoded(n), np.uint8)[:, None] for n in names for _ in range(EACH)]
        write(root / f"{split}_images_png.pkl", dumped(rows, 4))


def tiered_arrays(root: Path) -> None:
    for split, names in published_list("tiered-imagenet.ren").items():
        tiered_labels(root, split, names)
        images = np.stack([pixels(name)[..., ::-1] for name in names for _ in range(EACH)])
        np.savez(root / f"{split}_images.npz", images=images)


def numbered_pickles(dataset: str, pattern: str) -> Callable[[Path], None]:
    """Images and numbers that start anew in each split, as MetaOptNet passes them on."""

    def make(root: Path) -> None:
        for split, names in published_list(dataset).items():
            held = {
                "data": np.stack([pixels(name) for name in names for _ in range(EACH)]),
                "labels": [label for label in range(len(names)) for _ in range(EACH)],
            }
            write(root / pattern.format(split), dumped(held))

    return make


def cifar_files() -> dict[str, bytes]:
    """The files of CIFAR-100 for Python, whose keys are bytes: rows of three planes of 32x32."""
    names = sorted(n for part in published_list("cifar-fs.bertinetto").values() for n in part)
    rows = np.stack([pixels(name, 32).transpose(2, 0, 1).ravel() for name in names])
    part = {b"data": rows, b"fine_labels": list(range(len(names)))}
    meta = {b"fine_label_names": [name.encode() for name in names]}
    return {"train": dumped(part), "test": dumped(part), "meta": dumped(meta)}


def cifar_folder(root: Path) -> None:
    for name, data in cifar_files().items():
        write(root / "cifar-100-python" / name, data)


def cifar_packed(root: Path) -> None:
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as archive:
        for name, data in cifar_files().items():
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def cub(root: Path) -> None:
    place = root / "CUB_200_2011"
    by_class("cub.chen", "images")(place)
    paths = sorted(p.relative_to(place / "images") for p in place.glob("images/*/*.jpg"))
    lines = [f"{number} {path.as_posix()}" for number, path in enumerate(paths, 1)]
    (place / "images.txt").write_text("\n".join(lines) + "\n")
    boxes = [f"{number} 2.0 1.0 4.0 6.0" for number in range(1, len(paths) + 1)]
    (place / "bounding_boxes.txt").write_text("\n".join(boxes) + "\n")


def aircraft(root: Path) -> None:
    """Every image has a white banner below, which its box leaves out."""
    data = root / "fgvc-aircraft-2013b" / "data"
    labels, boxes = [], []
    names = [n for part in published_list("aircraft.meta-dataset").values() for n in part]
    for number, (name, _) in enumerate((n, i) for n in names for i in range(EACH)):
        whole = Image.new("RGB", (SIDE, SIDE + 4), "white")
        whole.paste(picture(name))
        file = io.BytesIO()
        whole.save(file, "PNG")
        write(data / "images" / f"{number:07}.jpg", file.getvalue())
        labels.append(f"{number:07} {name}")
        boxes.append(f"{number:07} 1 1 {SIDE} {SIDE}")
    (data / "images_variant_trainval.txt").write_text("\n".join(labels[::2]) + "\n")
    (data / "images_variant_test.txt").write_text("\n".join(labels[1::2]) + "\n")
    (data / "images_box.txt").write_text("\n".join(boxes) + "\n")


def flowers(root: Path) -> None:
    from scipy.io import savemat

    names = sorted(n for part in published_list("flowers.meta-dataset").values() for n in part)
    labels = [number for number in range(1, len(names) + 1) for _ in range(EACH)]
    for index, label in enumerate(labels, 1):
        write(root / "jpg" / f"image_{index:05}.jpg", encoded(names[label - 1], "JPEG"))
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})


def fungi(root: Path) -> None:
    names = sorted(n for part in published_list("fungi.meta-dataset").values() for n in part)
    categories = [{"id": int(n.split(".", 1)[0]), "name": n.split(".", 1)[1]} for n in names]
    for part in range(EACH):
        images, annotations = [], []
        for number, (name, category) in enumerate(zip(names, categories, strict=True)):
            file = f"images/{name}/{part}.JPG"
            write(root / file, encoded(name))
            images.append({"id": number, "file_name": file})
            annotations.append({"image_id": number, "category_id": category["id"]})
        held = {"categories": categories, "images": images, "annotations": annotations}
        (root / f"{('train', 'val')[part]}.json").write_text(json.dumps(held))


def own_list(root: Path) -> None:
    """Folders of classes, and a list of one's own of them."""
    for names in OWN.values():
        class_folders(root, names, "png")
    (root / "splits.json").write_text(json.dumps(OWN))


def own_folders(root: Path) -> None:
    for split, names in OWN.items():
        class_folders(root / split, names, "png")


def own_file(root: Path) -> None:
    names = [name for part in OWN.values() for name in part]
    np.savez(
        root / "set.npz",
        images=np.stack([pixels(name) for name in names for _ in range(EACH)]),
        labels=np.repeat(np.arange(len(names)), EACH),
        class_names=np.array(names),
        split=np.array([split for split, part in OWN.items() for _ in part]),
    )
