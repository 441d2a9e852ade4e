"""Random changes and normalization of batches."""

import pytest
import torch

from metasparse_ext.data import (
    Augment,
    DataError,
    ImageClasses,
    Normalize,
    Samples,
    TaskBatch,
    augmented,
)
from metasparse_ext.data.augment import augment_of


def batch_of(images):
    labels = torch.zeros(images.shape[:2], dtype=torch.int64, device=images.device)
    return TaskBatch(Samples(images, labels), Samples(images.clone(), labels))


@pytest.fixture
def batch(device):
    """Images of one bright pixel and a ramp of colours: no two turns of one are the same."""
    images = torch.linspace(0.2, 0.7, 3 * 6 * 6).reshape(3, 6, 6).expand(2, 40, 3, 6, 6).clone()
    images[..., 1, 2] = 0.95
    return batch_of(images)


def generator(batch, seed=0):
    return torch.Generator(batch.support.images.device).manual_seed(seed)


def apart(images):
    return list(images.flatten(0, 1))


def test_nothing_is_changed_by_default(batch):
    assert torch.equal(Augment()(batch).query.images, batch.query.images)


def test_flips_half_of_the_images(batch):
    images = Augment(flip=True)(batch, generator(batch)).support.images
    whole = batch.support.images[0, 0]
    flipped = [torch.equal(image, whole.flip(-1)) for image in apart(images)]
    kept = [torch.equal(image, whole) for image in apart(images)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 20 < sum(flipped) < 60


def test_turns_by_every_quarter(batch):
    images = Augment(rotate=True)(batch, generator(batch)).support.images
    turns = [batch.support.images[0, 0].rot90(k, (-2, -1)) for k in range(4)]
    found = [[torch.equal(image, turn) for turn in turns].index(True) for image in apart(images)]
    assert min(found.count(k) for k in range(4)) > 8


def test_crops_at_every_place(batch):
    images = Augment(padding=1)(batch, generator(batch)).support.images
    padded = torch.nn.functional.pad(batch.support.images[0, 0], (1, 1, 1, 1))
    places = [padded[:, top : top + 6, left : left + 6] for top in range(3) for left in range(3)]
    found = [[torch.equal(image, place) for place in places].index(True) for image in apart(images)]
    assert set(found) == set(range(9))


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_colours_are_scaled_about_their_origin(batch, kind):
    whole = batch.support.images[0, 0]
    luma = (whole * whole.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    origin = {
        "brightness": torch.zeros_like(luma),
        "contrast": luma.mean().expand_as(luma),
        "saturation": luma,
    }[kind]
    images = Augment(**{kind: 0.5})(batch, generator(batch)).support.images
    factors = []
    for image in apart(images):
        free = (image > 0) & (image < 1) & ((whole - origin).abs() > 0.02)
        ratio = ((image - origin) / (whole - origin))[free]
        assert ratio.max() - ratio.min() < 1e-3
        factors.append(ratio.mean().item())
    assert 0.5 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5
    assert 0 <= images.min() <= images.max() <= 1


def test_grey_images(device):
    images = torch.rand(2, 3, 1, 6, 6, device=device)
    changed = Augment(padding=2, flip=True, brightness=0.4, contrast=0.4, saturation=0.4)(
        batch_of(images)
    )
    assert changed.support.images.shape == images.shape


def test_half_precision_stays(device):
    images = torch.rand(2, 3, 3, 6, 6, device=device).half()
    changed = Augment(padding=2, flip=True, brightness=0.4, contrast=0.4, rotate=True)(
        batch_of(images)
    )
    assert changed.query.images.dtype == torch.float16


def test_the_support_set_alone(batch):
    changed = Augment(flip=True, query=False)(batch, generator(batch))
    assert torch.equal(changed.query.images, batch.query.images)
    assert not torch.equal(changed.support.images, batch.support.images)
    assert torch.equal(changed.support.labels, batch.support.labels)


def test_changes_depend_on_the_seed_and_the_number_alone(batch):
    augment = Augment(padding=2, flip=True)
    whole = list(augmented([batch] * 4, augment, seed=3))
    torch.rand(5)
    later = list(augmented([batch] * 2, augment, seed=3, start=2))
    other = list(augmented([batch] * 4, augment, seed=4))
    for one, two in zip(whole[2:], later, strict=True):
        assert torch.equal(one.query.images, two.query.images)
    assert not torch.equal(whole[0].query.images, whole[1].query.images)
    assert not torch.equal(whole[0].query.images, other[0].query.images)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flip", Augment(flip=True)),
        ("padding=4, brightness=0.4,query=false", Augment(padding=4, brightness=0.4, query=False)),
        ("rotate=true,saturation=1", Augment(rotate=True, saturation=1.0)),
    ],
)
def test_changes_are_read_from_a_text(text, expected):
    assert augment_of("here", "augment", text) == expected


@pytest.mark.parametrize(
    "wrong", ["", "flip,", "flip,flip", "flip=1", "padding", "padding=x", "contrast=2", "turn", 3]
)
def test_another_text_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match=r"here: expected augment to be .*padding="):
        augment_of("here", "augment", wrong)


def test_normalize(batch):
    normalized = Normalize([0.5, 0.4, 0.3], [0.5, 0.25, 0.125])(batch)
    for channel, (mean, std) in enumerate(((0.5, 0.5), (0.4, 0.25), (0.3, 0.125))):
        expected = (batch.query.images[:, :, channel] - mean) / std
        torch.testing.assert_close(normalized.query.images[:, :, channel], expected)


def test_statistics_normalize_the_classes():
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 5, 6, 3), generator=rng, dtype=torch.uint8)
    data = ImageClasses.from_labels(
        pixels.numpy(), torch.arange(20).numpy() % 4, list("abcd"), name="x", split="train"
    )
    mean, std = data.statistics()
    values = pixels.double().flatten(0, 2) / 255
    torch.testing.assert_close(torch.tensor(mean).double(), values.mean(0), rtol=1e-6, atol=0)
    expected = values.std(0, correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected, rtol=1e-6, atol=0)


def test_what_does_not_fit_is_refused(device):
    wide = batch_of(torch.rand(1, 2, 3, 4, 6, device=device))
    with pytest.raises(DataError, match=r"expected batch to be of square images, .* got 4x6"):
        Augment(rotate=True)(wide)
    with pytest.raises(DataError, match=r"expected batch to be of 1 channels, .* got 3"):
        Normalize([0.5], [0.5])(wide)
