"""Infinite and huge pixels: what the direct algorithm promises and Winograd does not."""

import pytest
import torch
import torch.nn.functional as F

import metasparse_ext as ms


def operands():
    images, weight = torch.randn(2, 16, 28, 28), torch.randn(12, 16, 3, 3)
    mask = (torch.rand(12, 16) < 0.5).float()
    mask[:, 0] = 1
    return images, weight, mask


def test_direct_gives_torchs_infinities_for_one_infinite_pixel():
    images, weight, mask = operands()
    images[1, 0, 10, 13] = torch.inf
    kept = [
        F.conv2d(images[:, m != 0], w[None, m != 0], padding=1)
        for w, m in zip(weight, mask, strict=True)
    ]
    expected = torch.cat(kept, 1)
    assert expected.isinf().sum() == 12 * 9
    assert not expected.isnan().any()
    with ms.backend("direct"):
        found = ms.masked_conv2d(images, weight, mask, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_direct_does_not_read_an_infinite_channel_that_is_pruned():
    images, weight, mask = operands()
    mask[:, 3] = 0
    finite = images.clone()
    images[:, 3] = torch.inf
    with ms.backend("direct"):
        found = ms.masked_conv2d(images, weight, mask, padding=1)
        assert torch.equal(found, ms.masked_conv2d(finite, weight, mask, padding=1))


@pytest.mark.parametrize("name", ["direct", "precise"])
def test_images_near_the_largest_float_do_not_overflow(name):
    images, weight, mask = operands()
    images = images * 1e36
    expected = F.conv2d(images, weight * mask[..., None, None], padding=1)
    assert expected.isfinite().all()
    with ms.backend(name):
        found = ms.masked_conv2d(images, weight, mask, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
