"""Convolutions of no tasks, no images or no channels, and those of no kernels."""

import pytest
import torch
import torch.nn.functional as F

import metasparse_ext as ms
from metasparse_ext.nn import MaskedConv2d

pytestmark = pytest.mark.usefixtures("device")

OPTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "same": {"padding": "same"},
    "groups": {"groups": 2},
    "dilation": {"dilation": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("own_weights", [False, True], ids=["shared", "per-task"])
@pytest.mark.parametrize(("tasks", "samples"), [(0, 3), (2, 0), (0, 0), (None, 0)])
def test_no_tasks_and_no_images(tasks, samples, own_weights, options):
    lead = () if tasks is None else (tasks,)
    one = (6, 4 // options.get("groups", 1), 3, 3)
    x = torch.randn(*lead, samples, 4, 8, 8, requires_grad=True)
    weight = torch.randn(*(lead if own_weights else ()), *one, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    y = ms.masked_conv2d(x, weight, torch.ones(one[:2]), bias, **options)
    image = F.conv2d(torch.zeros(1, 4, 8, 8), torch.zeros(one), **options)
    assert y.shape == (*lead, samples, *image.shape[1:])
    for gradient, leaf in zip(
        torch.autograd.grad(y.sum(), (x, weight, bias)), (x, weight, bias), strict=True
    ):
        assert torch.equal(gradient, torch.zeros_like(leaf))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_layers_take_no_tasks_and_no_images(padding_mode):
    layer = MaskedConv2d(4, 6, 3, padding=1, padding_mode=padding_mode)
    for lead in [(0,), (0, 3), (2, 0)]:
        assert layer(torch.randn(*lead, 4, 8, 8)).shape == (*lead, 6, 8, 8)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (6, 4, 0, 3), (6, 4, 3, 0)])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_kernels_are_refused(shape, groups):
    out, channels, *taps = shape
    weight = torch.empty(out, channels // groups, *taps)
    with pytest.raises(ValueError, match="masked_conv2d: expected weight to be of kernels"):
        ms.masked_conv2d(torch.zeros(2, 4, 8, 8), weight, None, groups=groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_layers_name_images_of_another_dtype(dtype, groups):
    layer = MaskedConv2d(4, 6, 3, groups=groups)
    got = str(dtype).removeprefix("torch.")
    expected = f"MaskedConv2d: expected input to be of float32 like its weight, got {got}"
    with pytest.raises(TypeError, match=expected):
        layer(torch.zeros(2, 4, 8, 8, dtype=dtype))
