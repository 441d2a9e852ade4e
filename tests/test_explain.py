"""What ``ms.explain`` says must be what happens."""

import re

import numpy as np
import pytest
import torch

import metasparse_ext as ms
from metasparse_ext import _library

pytestmark = pytest.mark.skipif(
    _library.problem is not None, reason="the compiled library is missing"
)


def layer(channels: int, side: int, kernel: int = 3, outputs: int = 64):
    return torch.randn(25, channels, side, side), torch.randn(outputs, channels, kernel, kernel)


def chosen(*args, **keywords) -> list[str]:
    return [explanation.algorithm for explanation in ms.explain(*args, **keywords)]


def test_each_row_of_the_rule_is_named():
    assert chosen(*layer(64, 28), padding=1) == ["winograd4"] * 3
    assert chosen(*layer(64, 28), stride=2, padding=1) == ["polyphase2"] * 3
    assert chosen(*layer(3, 28), padding=1)[0] == "few_channels"
    assert chosen(*layer(64, 28, kernel=5), padding=2) == ["library"] * 3


def test_windows_by_what_they_see_of_the_image():
    """A kernel as large as its image, one that is larger, and one of which one tap meets it."""
    assert chosen(*layer(64, 5, kernel=5)) == ["direct", "library", "direct"]
    assert chosen(*layer(256, 1, outputs=256), padding=1) == ["direct"] * 3
    halved = {"stride": 2, "padding": 1}
    assert chosen(*layer(256, 2, outputs=256), **halved) == ["library", "library", "direct"]
    mask = torch.ones(256, 256)
    mask[:, :16] = 0
    assert chosen(*layer(256, 2, outputs=256), mask, **halved) == ["direct", "library", "direct"]
    mask[:, :96] = 0
    assert chosen(*layer(256, 2, outputs=256), mask, **halved) == ["direct"] * 3


def test_why_a_row_was_passed_over():
    forward, *_ = ms.explain(*layer(64, 28, kernel=5), padding=2)
    verdicts = dict(forward.candidates)
    several = r"of its \d rules none applies: for output maps of 1 or fewer; "
    assert re.match(several, verdicts["direct"])
    assert verdicts["direct"].endswith(
        "its rule is for kernels of one pixel; density 1 is above 0.45"
    )
    assert len(verdicts) == len(forward.candidates), "an algorithm is named once"
    assert verdicts["polyphase2"] == "it takes 3x3 kernels at stride 2 and padding 1"
    assert "needs 8 input channels or more" in str(ms.explain(*layer(1, 28)))


def test_the_density_of_the_mask_decides():
    x, weight = layer(64, 28, kernel=5)
    sparse = (torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    assert chosen(x, weight, sparse, padding=2) == ["direct"] * 3


def test_a_forced_backend_and_what_it_lacks():
    with ms.backend("few_channels"):
        assert ms.get_backend() == "few_channels"
        forward, input_gradient, _ = ms.explain(*layer(3, 28))
    assert forward.candidates == (("few_channels", "forced"),)
    assert input_gradient.candidates[0].verdict == "forced, but it has no input gradient"
    assert ms.get_backend() == "automatic"


def test_other_dtypes_and_bad_shapes():
    x, weight = layer(64, 28)
    narrow = str(ms.explain(x.bfloat16(), weight.bfloat16(), padding=1))
    assert narrow.count("in float32, rounded to torch.bfloat16") == 3
    with pytest.raises(ValueError, match=r"weight\.size\(2\) to be I = 3"):
        ms.explain(x[:, :3], weight)
    with pytest.raises(ValueError, match="expected weight to be of 4 dimensions"):
        ms.explain(x, weight[0])
    with pytest.raises(ValueError, match="expected weight to be on cpu like x, got meta"):
        ms.explain(x, weight.to("meta"))


def test_what_the_op_takes_is_explained():
    """Numbers of NumPy, and operands that autocast makes float32."""
    x, weight = layer(64, 28)
    assert chosen(x, weight, stride=np.int64(2)) == chosen(x, weight, stride=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(x.bfloat16(), weight) == chosen(x, weight)
    with pytest.raises(TypeError, match="expected x to be a tensor, got str 'x'"):
        ms.explain("x", weight)


def test_padding_in_words_and_one_image():
    x, weight = layer(64, 28)
    assert chosen(x, weight, padding="same") == chosen(x, weight, padding=1)
    assert chosen(x, weight, padding="valid") == chosen(x, weight)
    assert chosen(x[0], weight) == chosen(x[:1], weight)
    with pytest.raises(ValueError, match="stride to be 1 for padding 'same'"):
        ms.explain(x, weight, stride=2, padding="same")


def test_why_tiles_have_their_size():
    forward, input_gradient, _ = ms.explain(*layer(64, 28))
    assert "tiles of 4x4, which cost least for 25 maps of 26x26" in str(forward)
    assert "for 25 maps of 28x28" in str(input_gradient)
    with ms.backend("precise"):
        assert "tiles of 2x2, the most precise ones" in str(ms.explain(*layer(64, 28)))
    assert "tiles" not in str(ms.explain(*layer(3, 28), stride=2)[2])


def test_an_algorithm_of_several_rows_is_named_once():
    (forward, *_) = ms.explain(*layer(5, 28), padding=1)
    names = [candidate.algorithm for candidate in forward.candidates]
    assert len(set(names)) == len(names)
    assert "not by an earlier one: needs 8 input channels or more" in str(forward)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 0},
        {"padding": -1},
        {"mask": torch.ones(64, 3)},
        {"weight": torch.ones(9, 64, 29, 29)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_op_refuses_is_not_explained(options):
    x, weight = layer(64, 28)
    operands = {"x": x, "weight": weight, "mask": None, **options}
    with pytest.raises(ValueError, match="masked_conv") as refused:
        ms.masked_conv2d(**operands)
    with pytest.raises(ValueError, match="masked_conv") as explained:
        ms.explain(**operands)
    assert str(explained.value) == str(refused.value)


@pytest.mark.parametrize(
    ("images", "side", "algorithm"), [(1, 4, "winograd2"), (25, 16, "winograd4")]
)
def test_few_images_take_smaller_tiles(images, side, algorithm):
    """The weights of larger ones would cost more than the products that they save."""
    x, weight = torch.rand(4, images, 64, side, side), torch.rand(4, 64, 64, 3, 3)
    found = {e.op: e.algorithm for e in ms.explain(x, weight, padding=1)}
    assert found == dict.fromkeys(found, algorithm)


@pytest.mark.parametrize(
    ("channels", "side", "density", "algorithms"),
    [
        (256, 6, 0.5, ["winograd3", "winograd3", "winograd3"]),
        (512, 3, 1.0, ["library", "library", "winograd2"]),
        (512, 3, 0.5, ["winograd2", "winograd2", "winograd2"]),
        (512, 3, 0.1, ["winograd3", "winograd3", "winograd3"]),
        (512, 2, 0.5, ["direct", "direct", "direct"]),
        (512, 2, 0.1, ["winograd2", "winograd2", "winograd2"]),
    ],
)
def test_many_channels_on_few_pixels(channels, side, density, algorithms):
    """The more kernels are in use, the more pixels their transformed weights need to pay."""
    x, weight = torch.rand(4, 15, channels, side, side), torch.rand(channels, channels, 3, 3)
    mask = (torch.rand(weight.shape[:2], generator=torch.manual_seed(0)) < density).float()
    assert chosen(x, weight, mask, padding=1) == algorithms


@pytest.mark.parametrize(("images", "algorithm"), [(5, "direct"), (25, "polyphase2")])
def test_weight_gradients_of_very_many_channels_at_stride_2(images, algorithm):
    x, weight = torch.rand(4, images, 512, 4, 4), torch.rand(512, 512, 3, 3)
    *_, weight_gradient = ms.explain(x, weight, stride=2, padding=1)
    assert weight_gradient.algorithm == algorithm


def test_kernels_of_one_pixel():
    """They are neither transformed nor gathered, so that more of them may be in use."""
    x = torch.rand(4, 15, 256, 8, 8)
    for kernel, algorithm in ((1, "direct"), (5, "library")):
        weight = torch.rand(256, 256, kernel, kernel)
        mask = (torch.rand(256, 256, generator=torch.manual_seed(0)) < 0.5).float()
        assert chosen(x, weight, mask, padding=kernel // 2) == [algorithm] * 3
        assert chosen(x, weight, padding=kernel // 2) == ["library"] * 3


@pytest.mark.parametrize("stride", [1, 2])
def test_first_layers_are_for_few_channels_whatever_their_mask(stride):
    x, weight = torch.rand(4, 25, 3, 32, 32), torch.rand(4, 64, 3, 3, 3)
    for kept in (64, 32, 6):
        mask = (torch.arange(64) < kept).float()[:, None].expand(64, 3)
        forward, *_ = ms.explain(x, weight, mask, stride, 1)
        assert forward.algorithm == "few_channels"
