"""Batches, and images grouped by class."""

import numpy as np
import pytest
import torch
from support.data_sets import coded_classes

from metasparse_ext.data import DataError, ImageClasses, Samples, TaskBatch


def test_batch_moves_as_one():
    samples = Samples(torch.zeros(2, 5, 1, 4, 4), torch.zeros(2, 5, dtype=torch.int64))
    mixed = samples._replace(distribution=torch.arange(2))
    batch = TaskBatch(support=mixed, query=samples).to("meta", non_blocking=True)
    assert isinstance(batch, TaskBatch)
    assert isinstance(batch.query, Samples)
    assert {t.device.type for part in batch for t in part if t is not None} == {"meta"}
    assert batch.distribution.device.type == "meta"
    assert batch.query.distribution is None


def test_some_tasks_of_a_batch():
    samples = Samples(torch.rand(3, 2, 1, 4, 4), torch.zeros(3, 2), torch.arange(3))
    batch = TaskBatch(samples, samples._replace(distribution=None))
    first, last = batch.tasks(slice(1)), batch.tasks(torch.tensor([2]))
    assert torch.equal(torch.cat([first.query.images, last.query.images]), samples.images[[0, 2]])
    assert (first.distribution.tolist(), last.distribution.tolist()) == ([0], [2])
    assert first.query.distribution is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs CUDA")
def test_batch_pins_every_tensor():
    samples = Samples(torch.zeros(2, 5, 1, 4, 4), torch.zeros(2, 5, dtype=torch.int64))
    batch = TaskBatch(samples, samples).pin_memory()
    assert all(t.is_pinned() for part in batch for t in part if t is not None)


def test_labels_are_grouped_and_keep_their_order():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)
    data = ImageClasses.from_labels(
        images, np.array([1, 0, 1, 0, 1]), ["a", "b"], name="x", split="val"
    )
    assert [data[c].ravel().tolist() for c in range(2)] == [[1, 3], [0, 2, 4]]
    assert data.sizes.tolist() == [2, 3]
    assert (len(data), data.shape, str(data)) == (2, (1, 1, 1), "x/val")


def test_class_names_differ():
    images, labels = np.zeros((2, 1, 1), np.uint8), np.array([0, 1])
    with pytest.raises(DataError, match=r"x/val: class_names: .* got 'a' twice"):
        ImageClasses.from_labels(images, labels, ["a", "a"], name="x", split="val")


def test_channels_last_becomes_channels_first():
    images = np.random.default_rng(0).integers(256, size=(4, 5, 6, 3), dtype=np.uint8)
    data = ImageClasses.from_labels(images, np.zeros(4, int), ["a"], name="x", split="train")
    assert data.shape == (3, 5, 6)
    np.testing.assert_array_equal(data.images.transpose(0, 2, 3, 1), images)


def test_index_past_the_classes():
    data = coded_classes([2, 2])
    np.testing.assert_array_equal(data[-1], data[1])
    with pytest.raises(IndexError):
        data[2]


def test_class_without_images():
    with pytest.raises(DataError, match=r"x/train: class 'b' has no images"):
        ImageClasses.from_labels(
            np.zeros((1, 2, 2), np.uint8), np.array([0]), ["a", "b"], name="x", split="train"
        )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("images", np.zeros((4, 1, 3, 3), np.float32), "type uint8"),
        ("images", np.zeros((4, 2, 3, 3), np.uint8), r"1 or 3, H, W"),
        ("images", np.zeros((5, 1, 3, 3), np.uint8), "from 0 to 5, got 0 to 4"),
        ("offsets", np.array([0, 4]), "expected offsets to be 3 integers"),
    ],
)
def test_arrays_that_do_not_fit(field, value, message):
    data = coded_classes([2, 2])
    fields = {
        name: getattr(data, name) for name in ("images", "offsets", "class_names", "name", "split")
    }
    with pytest.raises(DataError, match=message):
        ImageClasses(**fields | {field: value})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [7, 28, 41])
def test_resized_keeps_the_picture(channels, size):
    ramp = np.linspace(0, 255, 28).astype(np.uint8)
    images = np.broadcast_to(ramp[:, None, None], (2, 28, 28, channels))
    data = ImageClasses.from_labels(images, np.zeros(2, int), ["a"], name="x", split="train")
    resized = data.resized(size)
    assert resized.shape == (channels, size, size)
    expected = (np.arange(size) + 0.5) / size * 28 - 0.5
    expected = expected.clip(0, 27) * 255 / 27
    error = resized.images - expected[:, None]
    assert abs(error).max() < 6  # bicubic overshoots a little at the borders


def test_resized_to_its_own_size_is_itself():
    data = coded_classes([2, 2])
    assert data.resized(3) is data
    with pytest.raises(ValueError, match="expected image_size to be at least 1, got 0"):
        data.resized(0)


def test_grey_to_rgb_and_back():
    data = coded_classes([3, 3])
    colour = data.with_channels(3)
    assert colour.shape == (3, 3, 3)
    assert (colour.images == data.images).all()
    np.testing.assert_array_equal(colour.with_channels(1).images, data.images)
    assert data.with_channels(1) is data


def test_rgb_to_grey_is_luma():
    images = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    data = ImageClasses.from_labels(
        images.reshape(4, 1, 1, 3), np.zeros(4, int), ["a"], name="x", split="train"
    )
    assert data.with_channels(1).images.ravel().tolist() == [76, 150, 29, 255]
    with pytest.raises(ValueError, match="expected channels to be one of 1, 3, got 4"):
        data.with_channels(4)
