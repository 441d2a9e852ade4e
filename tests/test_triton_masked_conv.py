"""The Triton kernels of the masked convolution family against the definition in float64."""

import pytest
import torch
from support.triton_kernels import (  # noqa: F401
    DEVICE,
    assert_close,
    on_device,
    runs_kernels,
    tf32_products,
)

from metasparse_ext import reference

pytest.importorskip("triton")
from metasparse_ext.triton import masked_conv as triton_ops
from metasparse_ext.triton.masked_conv import weight_grad

pytestmark = runs_kernels

SMALL = triton_ops.Tile(rows=16, pixels=32, reduction=16)
BOUNDS = {torch.float64: 1e-14, torch.float32: 2e-6}

# T, N, I, O, H, W, kernel, stride, padding
SHAPES = {
    "3x3": (2, 2, 3, 5, 5, 6, (3, 3), (1, 1), (1, 1)),
    "3x3 stride 2, several tiles": (2, 1, 17, 18, 5, 7, (3, 3), (2, 2), (1, 1)),
    "3x3 unpadded": (1, 2, 5, 3, 4, 5, (3, 3), (1, 1), (0, 0)),
    "5x3 uneven": (2, 1, 2, 4, 7, 6, (5, 3), (2, 1), (0, 2)),
    "1x1 stride beyond the kernel": (1, 2, 2, 3, 5, 4, (1, 1), (3, 3), (0, 0)),
    "1x5 on many channels": (1, 1, 18, 3, 3, 6, (1, 5), (1, 2), (0, 2)),
    "2x3 on one channel": (2, 2, 1, 2, 4, 5, (2, 3), (3, 2), (1, 1)),
}
MASKS = ("none", "irregular", "empty", "one task empty", "channels")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Weight gradients in a few slices: the interpreter runs programs one after another."""
    monkeypatch.setattr(weight_grad, "PROGRAMS", 6)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request):
    return request.param


def make_mask(kind: str, tasks: int, outputs: int, inputs: int) -> torch.Tensor | None:
    if kind == "none":
        return None
    mask = (torch.rand(tasks, outputs, inputs) < 0.4).double()
    if kind == "empty":
        mask.zero_()
    elif kind == "one task empty":
        mask[-1] = 0
    elif kind == "channels":
        mask = torch.ones_like(mask)
        mask[:, :, : (inputs + 1) // 2] = 0
        mask[:, : outputs // 2] = 0
    return mask


class Problem:
    """Operands of one convolution, and the derivatives of <grad, y>."""

    def __init__(self, shape, mask="irregular"):
        tasks, samples, inputs, outputs, height, width, kernel, self.stride, self.padding = shape
        self.image, self.kernel = (height, width), kernel
        self.x = torch.randn(tasks, samples, inputs, height, width).double()
        self.weight = torch.randn(tasks, outputs, inputs, *kernel).double()
        self.mask = make_mask(mask, tasks, outputs, inputs)
        self.bias = torch.randn(tasks, outputs).double()
        self.y = self.conv(self.x, self.weight, self.mask, self.bias)
        self.grad = torch.randn_like(self.y)

    def conv(self, x, weight, mask, bias=None):
        return reference.masked_conv(x, weight, mask, bias, self.stride, self.padding)

    def input_grad(self, grad, weight, mask):
        return self.pull(grad, lambda x: self.conv(x, weight, mask), self.x)

    def weight_grad(self, grad, x, mask):
        return self.pull(grad, lambda w: self.conv(x, w, mask), self.weight)

    @staticmethod
    def pull(grad, function, at):
        return torch.func.vjp(function, at)[1](grad)[0]


def launch(op, *args, dtype=torch.float64, tile=SMALL, **options):
    """A launcher on operands of a dtype."""

    def cast(v):
        return v.to(DEVICE, dtype) if isinstance(v, torch.Tensor) else v

    options = {name: cast(value) for name, value in options.items()}
    return getattr(triton_ops, op)(*map(cast, args), tile=tile, **options).cpu()


@pytest.mark.parametrize("dtype", BOUNDS, ids=["f64", "f32"])
def test_all_four_ops(shape, dtype):
    p, bound = Problem(shape), BOUNDS[dtype]
    window = (p.stride, p.padding)
    y = launch("masked_conv", p.x, p.weight, p.mask, p.bias, *window, dtype=dtype)
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_close(y, p.y, bound)
    gx = launch(
        "masked_conv_input_grad", p.grad, p.weight, p.mask, p.image, *window, dtype=dtype,
    )  # fmt: skip
    assert_close(gx, p.input_grad(p.grad, p.weight, p.mask), bound)
    gw = launch("masked_conv_weight_grad", p.grad, p.x, p.mask, p.kernel, *window, dtype=dtype)
    assert_close(gw, p.weight_grad(p.grad, p.x, p.mask), bound)
    gm = launch("masked_conv_mask_grad", p.grad, p.x, p.weight, *window, dtype=dtype)
    assert_close(gm, p.pull(p.grad, lambda m: p.conv(p.x, p.weight, m), p.mask), bound)


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask):
    p = Problem((2, 1, 12, 17, 3, 3, (3, 3), (2, 2), (1, 1)), mask)
    y = launch("masked_conv", p.x, p.weight, p.mask, p.bias, p.stride, p.padding)
    assert_close(y, p.y, 1e-14)
    gx = launch("masked_conv_input_grad", p.grad, p.weight, p.mask, p.image, p.stride, p.padding)
    assert_close(gx, p.input_grad(p.grad, p.weight, p.mask), 1e-14)
    gw = launch("masked_conv_weight_grad", p.grad, p.x, p.mask, p.kernel, p.stride, p.padding)
    assert_close(gw, p.weight_grad(p.grad, p.x, p.mask), 1e-14)


@pytest.mark.parametrize("mask", ["none", "irregular"])
@pytest.mark.parametrize("stride", [1, 2], ids=["stride 1", "stride 2"])
def test_sums_of_two(stride, mask):
    shape = (2, 1, 3, 17, 4, 5, (3, 3), (stride, stride), (1, 1))
    p, q = Problem(shape, mask), Problem(shape, "one task empty")
    window = (p.stride, p.padding)
    y = launch(
        "masked_conv_pair", p.x, p.weight, p.mask, q.x, q.weight, q.mask, p.bias, *window,
    )  # fmt: skip
    assert_close(y, p.y + q.conv(q.x, q.weight, q.mask), 1e-14)
    gx = launch(
        "masked_conv_input_grad_pair", p.grad, p.weight, p.mask, q.grad, q.weight, q.mask, p.image,
        *window,
    )  # fmt: skip
    expected = p.input_grad(p.grad, p.weight, p.mask) + q.input_grad(q.grad, q.weight, q.mask)
    assert_close(gx, expected, 1e-14)
    gw = launch("masked_conv_weight_grad_pair", p.grad, p.x, q.grad, q.x, p.mask, p.kernel, *window)
    expected = p.weight_grad(p.grad, p.x, p.mask) + q.weight_grad(q.grad, q.x, p.mask)
    assert_close(gw, expected, 1e-14)


def test_what_is_pruned_is_not_used(poisoned_memory):
    p = Problem((2, 1, 5, 6, 4, 4, (3, 3), (2, 2), (1, 1)))
    poisoned = p.weight.masked_fill(p.mask[..., None, None] == 0, torch.nan)
    y = launch("masked_conv", p.x, poisoned, p.mask, p.bias, p.stride, p.padding)
    assert_close(y, p.y, 1e-14)
    gx = launch("masked_conv_input_grad", p.grad, poisoned, p.mask, p.image, p.stride, p.padding)
    assert_close(gx, p.input_grad(p.grad, p.weight, p.mask), 1e-14)


def test_shared_and_strided_operands():
    p = Problem((3, 2, 4, 5, 4, 5, (3, 3), (1, 1), (1, 1)))
    shared = [t[:1].expand(t.shape) for t in on_device(p.weight, p.mask, p.bias)]
    turned = p.x.to(DEVICE).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    y = triton_ops.masked_conv(turned, *shared, p.stride, p.padding, tile=SMALL).cpu()
    expected = p.conv(p.x, *(t[:1].expand(t.shape) for t in (p.weight, p.mask, p.bias)))
    assert_close(y, expected, 1e-14)
    wide = torch.randn(3, 4, *p.grad.shape[2:]).double()
    gx = launch(
        "masked_conv_input_grad", wide[:, ::2], p.weight, p.mask, p.image, p.stride, p.padding
    )
    assert_close(gx, p.input_grad(wide[:, ::2], p.weight, p.mask), 1e-14)


def nearest_tf32(x: torch.Tensor) -> torch.Tensor:
    """Eleven significant bits."""
    mantissa, exponent = torch.frexp(x.float())
    return torch.ldexp((mantissa * 2**11).round(), exponent - 11).double()


@pytest.mark.usefixtures("tf32_products")
@pytest.mark.parametrize("inputs", [2, 17], ids=["flat", "taps"])
def test_inputs_of_tf32_products_are_rounded(inputs):
    """Truncated ones would miss by some 5e-4, all in one direction."""
    p = Problem((1, 1, inputs, 18, 4, 5, (3, 3), (1, 1), (1, 1)))
    x, grad = nearest_tf32(p.x), nearest_tf32(p.grad)
    weight = nearest_tf32(p.weight)
    window, options = (p.stride, p.padding), {"dtype": torch.float32, "precision": "tf32"}
    y = launch("masked_conv", p.x, p.weight, p.mask, None, *window, **options)
    assert_close(y, p.conv(x, weight, p.mask), 2e-6)
    gx = launch("masked_conv_input_grad", p.grad, p.weight, p.mask, p.image, *window, **options)
    assert_close(gx, p.input_grad(grad, weight, p.mask), 2e-6)
    gw = launch("masked_conv_weight_grad", p.grad, p.x, p.mask, p.kernel, *window, **options)
    assert_close(gw, p.weight_grad(grad, x, p.mask), 2e-6)


@pytest.mark.usefixtures("tf32_products")
def test_rounding_keeps_what_is_not_finite():
    p = Problem((1, 1, 1, 2, 3, 3, (1, 1), (1, 1), (0, 0)), mask="none")
    p.x[0, 0, 0, 0] = torch.tensor([torch.inf, -torch.inf, torch.nan]).double()
    x = p.x.float()
    x[0, 0, 0, 1, 0] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)[0]
    weight = p.weight.abs()
    y = launch("masked_conv", x, weight, None, None, p.stride, p.padding,
               dtype=torch.float32, precision="tf32")  # fmt: skip
    assert y[0, 0, 0, 0, :2].tolist() == [torch.inf, -torch.inf]
    assert y[0, 0, 0, 0, 2].isnan()
    assert y[0, 0, 0, 1, 0].isnan()
    assert y[0, 0, 0, 2].isfinite().all()


def test_slices_are_added_in_one_order(monkeypatch):
    p = Problem((1, 3, 3, 4, 6, 6, (3, 3), (1, 1), (1, 1)))
    args = (p.grad, p.x, p.mask, p.kernel, p.stride, p.padding)
    sums = {}
    for programs in (1, 3, 50):
        monkeypatch.setattr(weight_grad, "PROGRAMS", programs)
        sums[programs] = launch("masked_conv_weight_grad", *args, dtype=torch.float32)
        again = launch("masked_conv_weight_grad", *args, dtype=torch.float32)
        assert torch.equal(sums[programs], again)
        assert_close(sums[programs], p.weight_grad(p.grad, p.x, p.mask), 1e-6)
    assert weight_grad.slice_pixels(108, 2, SMALL) == (4, 32)


@pytest.mark.parametrize("mask", ["none", "irregular"])
@pytest.mark.parametrize("dense", [False, True], ids=["masked", "dense"])
def test_both_gradients_in_one_launch(mask, dense):
    """Of other tiles, in several slices, at a stride whose phases have other taps."""
    p = Problem((2, 2, 19, 35, 7, 6, (3, 3), (2, 2), (1, 1)), mask)
    args = on_device(p.grad, p.x, p.weight, p.mask, dense, p.stride, p.padding)
    tiles = {"tile": SMALL, "weight_tile": triton_ops.Tile(rows=32, pixels=16, reduction=16)}
    gx, gw = triton_ops.masked_conv_backward(*args, **tiles)
    assert_close(gx.cpu(), p.input_grad(p.grad, p.weight, p.mask), 1e-14)
    assert_close(gw.cpu(), p.weight_grad(p.grad, p.x, None if dense else p.mask), 1e-14)
