"""bfloat16 and float16 on the CPU: ops and layers compute in float32 and round once."""

import copy

import pytest
import torch
from torch import nn

import metasparse_ext as ms
from metasparse_ext.nn import BatchNorm2d, Conv4, MaskedConv2d, NormActPool, ResNet12, ScoreMask

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])


def operands(dtype):
    """x, weight, mask, bias of a convolution of two tasks; the numbers are of the dtype."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4, 6, 6), (2, 5, 4, 3, 3), (5, 4), (5,)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def values_and_gradients(function, given):
    leaves = [t.detach().requires_grad_() for t in given]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)]


def conv(x, weight, mask, bias):
    return ms.masked_conv2d(x, weight, mask, bias, 1, "same")


def norm(x, weight, mask, bias):
    return ms.norm_act_pool(x, mask[:4, 0], bias[:4], pool=2)


@DTYPES
@pytest.mark.parametrize("op", [conv, norm], ids=["conv", "norm"])
def test_ops_round_once(op, dtype):
    given = operands(dtype)
    used = given if op is conv else [given[0]]
    function = op if op is conv else lambda x: op(x, *given[1:])
    wide = op if op is conv else lambda x: op(x, *(t.float() for t in given[1:]))
    found = values_and_gradients(function, used)
    exact = values_and_gradients(lambda *a: wide(*a).to(dtype), [t.float() for t in used])
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs.to(dtype))


@DTYPES
def test_a_mask_of_bools_and_one_image(dtype):
    x, weight, mask, bias = operands(dtype)
    y = ms.masked_conv2d(x[0, 0], weight[0], mask > 0, bias)
    wide = ms.masked_conv2d(x[0, 0].float(), weight[0].float(), mask > 0, bias.float())
    assert torch.equal(y, wide.to(dtype))


@DTYPES
def test_mixed_dtypes_are_refused(dtype):
    x, weight, mask, bias = operands(dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=f"weight to be of {name} like x, got float32"):
        conv(x, weight.float(), mask, bias)
    with pytest.raises(TypeError, match=f"mask to be of float32 like x, got {name}"):
        conv(x.float(), weight.float(), mask, bias.float())
    with pytest.raises(TypeError, match=f"bias to be of {name} like x, got float32"):
        ms.norm_act_pool(x, bias=torch.zeros(4))


MODULES = {
    "MaskedConv2d": lambda: MaskedConv2d(3, 4, 3, mask=ScoreMask(4, 3, -1, 1)),
    "BatchNorm2d": lambda: BatchNorm2d(3),
    "NormActPool": lambda: NormActPool(3, pool=2),
    "Conv4": lambda: Conv4(3, 16, 4, 3, blocks=2),
    "pooled Conv4": lambda: Conv4(3, 16, 4, 3, blocks=2, strided=False),
    "ResNet12": lambda: ResNet12(3, 16, 2, 3),
}


@DTYPES
@pytest.mark.parametrize("kind", MODULES)
def test_layers_and_networks_take_and_return_their_dtype(kind, dtype):
    torch.manual_seed(0)
    module: nn.Module = MODULES[kind]().to(dtype)
    x = torch.randn(6, 3, 16, 16).to(dtype).requires_grad_()
    y = module(x)
    assert y.dtype == dtype
    wide = copy.deepcopy(module).float()
    expected = wide(x.detach().float())
    error = (y.float() - expected).abs().amax() / expected.abs().amax()
    assert error < 30 * torch.finfo(dtype).eps  # a rounding a layer
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(y.float().sin().sum(), [x, *parameters.values()])
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    by_task = module(x.detach().expand(2, *x.shape))
    assert by_task.dtype == dtype
    assert torch.equal(by_task[1], by_task[0])


def test_autocast_still_computes_and_returns_float32():
    x, weight, mask, bias = operands(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x, weight.float(), mask, bias).dtype == torch.float32
        assert ms.norm_act_pool(x).dtype == torch.float32


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2}, {"dilation": 2}, {"groups": 2, "dilation": (1, 2)}], ids=str
)
def test_every_convolution_is_of_float32_under_autocast(options, padding_mode):
    layer = MaskedConv2d(4, 6, 3, padding=2, padding_mode=padding_mode, **options)
    for shape in [(3, 4, 8, 8), (2, 3, 4, 8, 8), (4, 8, 8)]:
        x = torch.randn(shape)
        for dtype in (torch.float32, torch.bfloat16):
            given = x.to(dtype).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(given)
                gradients = torch.autograd.grad(y.square().sum(), [given, layer.weight])
            wide = x.to(dtype).float().requires_grad_()
            expected = layer(wide)
            exact = torch.autograd.grad(expected.square().sum(), [wide, layer.weight])
            assert y.dtype == torch.float32
            torch.testing.assert_close(y, expected)
            for mine, theirs in zip(gradients, exact, strict=True):
                torch.testing.assert_close(mine, theirs.to(mine.dtype))


@pytest.mark.parametrize("groups", [1, 2])
def test_autocast_leaves_float64_and_mixes_it_with_nothing(groups):
    layer = MaskedConv2d(4, 6, 3, groups=groups)
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    wanted = "input to be of float32 like its weight, got float64"
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match=wanted):
            layer(x)
        assert layer.double()(x).dtype == torch.float64
