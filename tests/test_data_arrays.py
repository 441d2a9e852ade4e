"""Classes of arrays, tensors and datasets that a program has already."""

import numpy as np
import pytest
import torch
from PIL import Image

from metasparse_ext.data import DataError, episodes, from_arrays, from_dataset

RGB = np.random.default_rng(0).integers(256, size=(6, 4, 5, 3), dtype=np.uint8)
LABELS = np.array([1, 0, 1, 0, 1, 0])


def images_of(data):
    """Back to channels last, in the order of the labels 1, 0, 1, 0..."""
    rows = np.empty_like(data.images)
    rows[1::2], rows[::2] = data[0], data[1]
    return rows.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16"])
def test_images_of_every_form(layout, kind, dtype):
    images = RGB if layout == "NHWC" else RGB.transpose(0, 3, 1, 2).copy()
    if dtype != "uint8":
        images = (images / 255).astype(dtype)
    data = from_arrays(kind(images), kind(LABELS), ["a", "b"], name="mine", split="val")
    assert (str(data), data.class_names, data.shape) == ("mine/val", ("a", "b"), (3, 4, 5))
    np.testing.assert_array_equal(images_of(data), RGB)


def test_bfloat16_and_gradients():
    images = torch.zeros(4, 1, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    assert from_arrays(images, [0, 0, 1, 1]).shape == (1, 4, 4)


def test_grey_images():
    assert from_arrays(RGB[..., 0], LABELS).shape == (1, 4, 5)
    assert from_arrays(RGB[..., :1], LABELS).shape == (1, 4, 5)


def test_labels_name_the_classes():
    assert from_arrays(RGB, [7, 3, 7, 3, 30, 30]).class_names == ("3", "7", "30")


def test_a_shape_that_may_be_either_needs_a_layout():
    images = np.zeros((4, 3, 8, 3), np.uint8)
    with pytest.raises(DataError, match=r"expected layout to be 'NHWC' or 'NCHW', .*may be either"):
        from_arrays(images, [0, 0, 1, 1])
    assert from_arrays(images, [0, 0, 1, 1], layout="NHWC").shape == (3, 3, 8)
    assert from_arrays(images, [0, 0, 1, 1], layout="NCHW").shape == (3, 8, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": RGB.astype(np.int32)}, "expected images to be uint8, or .* got int32"),
        ({"images": RGB / 1.0}, "expected images to be uint8, or .* from 0 to 255"),
        ({"images": np.full((6, 4, 5), np.nan)}, "expected images .* from nan to nan"),
        ({"images": RGB[..., :2]}, r"expected images .* got the shape \(6, 4, 5, 2\)"),
        ({"images": RGB[0, 0]}, r"expected images .* got the shape \(5, 3\)"),
        ({"labels": LABELS[:5]}, r"expected labels to be 6 integers.* got int64 of shape \(5,\)"),
        ({"labels": LABELS / 1.0}, "got float64"),
        ({"labels": [[0]] * 6}, r"shape \(6, 1\)"),
        ({"labels": [0, 1, 2] * 2}, "labels to be from 0 to 1, as class_names are, in .*, got 2"),
        ({"class_names": ["a", "a"]}, "got 'a' twice"),
        ({"layout": "NCHW"}, "expected images to be NCHW"),
    ],
)
def test_what_does_not_fit(change, message):
    good = {"images": RGB, "labels": LABELS, "class_names": ["a", "b"]}
    with pytest.raises(DataError, match=message):
        from_arrays(**good | change)


class Pairs:
    """A dataset of torchvision's form."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


FORMS = {
    "pillow": Image.fromarray,
    "array": np.asarray,
    "tensor": lambda x: torch.from_numpy(x).permute(2, 0, 1),
    "float tensor": lambda x: torch.from_numpy(x).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", [int, torch.tensor, np.int64])
def test_datasets(form, label):
    pairs = Pairs(
        [(FORMS[form](x), label(y)) for x, y in zip(RGB, LABELS, strict=True)], ["a", "b"]
    )
    data = from_dataset(pairs, name="mine", split="test")
    assert (str(data), data.class_names) == ("mine/test", ("a", "b"))
    np.testing.assert_array_equal(images_of(data), RGB)
    batch = next(episodes(data, ways=2, shots=1, queries=2, tasks=1))
    assert batch.query.images.shape == (1, 4, 3, 4, 5)


def test_datasets_without_names_and_of_many_sizes():
    items = [(Image.new("RGB", (4 + i, 6)), f"kind {i % 2}") for i in range(4)]
    with pytest.raises(DataError, match=r"\(6, 4\) of dataset\[0\] and \(6, 7\) of .*image_size"):
        from_dataset(Pairs(items))
    data = from_dataset(Pairs(items), image_size=8, fit="crop")
    assert (data.class_names, data.shape) == (("kind 0", "kind 1"), (3, 8, 8))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "one that is empty"),
        ([(RGB[0], 0)], "got one, 'a'"),
        ([RGB[0]] * 2, r"expected dataset\[0\] to be an image and a label"),
        ([(RGB[0], 2)] * 2, r"expected the label of dataset\[0\] to be a class of 2, got 2"),
        ([(RGB[0, 0, 0], 0)] * 2, r"expected dataset\[0\] to be an image .*shape \(3,\)"),
        ([(torch.zeros(2, 4, 4), 0)] * 2, r"expected dataset\[0\] to be an image .*\(4, 4, 2\)"),
        ([(torch.ones(3, 4, 4) * 9, 0)] * 2, "from 9 to 9"),
    ],
)
def test_datasets_that_do_not_fit(items, message):
    with pytest.raises(ValueError, match=message):
        from_dataset(Pairs(items, ["a", "b"]))
