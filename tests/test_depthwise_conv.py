"""The depthwise convolution of tasks and its gradients, closed under differentiation."""

import random

import pytest
import torch
from support.grid import (
    check_compile,
    check_derivatives,
    check_func_transforms,
    check_third_derivative,
)
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext import _library, reference

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")

OPS = torch.ops.metasparse


def _extent(drawn: random.Random) -> tuple[int, int, int, int]:
    """Size, kernel, stride and padding of an axis; windows fit."""
    kernel, stride = drawn.choice((1, 2, 3, 3, 5, 7)), drawn.choice((1, 1, 2, 2, 3))
    padding = drawn.randrange(kernel + 2) if drawn.random() < 0.2 else drawn.randrange(kernel)
    least = max(1, kernel - 2 * padding)
    return drawn.randint(least, least + drawn.choice((0, 6, 40))), kernel, stride, padding


def drawn_call(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, tuple]:
    """x, weight, and stride and padding."""
    drawn = random.Random(seed)
    sizes, kernel, stride, padding = zip(_extent(drawn), _extent(drawn), strict=True)
    tasks, samples, channels = (drawn.randint(1, 4) for _ in range(3))
    torch.manual_seed(seed)
    x = torch.randn(tasks, samples, channels, *sizes, dtype=dtype)
    return x, torch.randn(tasks, channels, 1, *kernel, dtype=dtype), (stride, padding)


def laid_out(t: Tensor, seed: int) -> Tensor:
    """The same numbers, with other strides."""
    axes = random.Random(seed).sample(range(t.dim()), t.dim())
    return t.permute(axes).contiguous().permute([axes.index(k) for k in range(t.dim())])


def three(x: Tensor, weight: Tensor, grad: Tensor, window: tuple) -> list[Tensor]:
    return [
        OPS.depthwise_conv(x, weight, *window),
        OPS.depthwise_conv_input_grad(grad, weight, x.shape[3:], *window),
        OPS.depthwise_conv_weight_grad(grad, x, weight.shape[3:], *window),
    ]


def expected_three(x: Tensor, weight: Tensor, grad: Tensor, window: tuple) -> list[Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = reference.depthwise_conv(x, weight, *window)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), grad)]


@pytest.mark.parametrize("seed", range(60))
def test_equals_its_definition_on_drawn_shapes(seed):
    x, weight, window = drawn_call(seed)
    grad = torch.randn_like(reference.depthwise_conv(x, weight, *window))
    expected = expected_three(x, weight, grad, window)
    for found in (
        three(x, weight, grad, window),
        three(laid_out(x, seed), laid_out(weight, seed), laid_out(grad, seed), window),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    single = three(x.float(), weight.float(), grad.float(), window)
    scale = [t.abs().max().clamp(min=1) for t in expected]
    for mine, theirs, top in zip(single, expected, scale, strict=True):
        assert ((mine.double() - theirs).abs().max() <= 2e-5 * top).item()


def test_one_network_for_all_tasks():
    x, weight, window = drawn_call(3)
    x, shared = x.expand(2, *x.shape[1:]) if len(x) == 1 else x, weight[:1]
    alone = [OPS.depthwise_conv(each[None], shared, *window) for each in x]
    found = OPS.depthwise_conv(x, shared.expand(len(x), *weight.shape[1:]), *window)
    assert torch.equal(found, torch.cat(alone))


def test_pixels_that_no_window_sees_do_not_count():
    """A vector reads past the last output; what it finds there may be infinite."""
    x, weight = torch.randn(1, 1, 1, 9, 20), torch.randn(1, 1, 1, 3, 3)
    x[..., -1] = torch.inf
    x[..., -1, :] = torch.nan
    window = (2, 2), (0, 0)  # columns 0 to 18, rows 0 to 8
    grad = torch.randn_like(reference.depthwise_conv(x, weight, *window))
    grad[..., -1, :] = 0
    x[..., 8, :] = 1
    found = three(x, weight, grad, window)
    for mine, theirs in zip(found, expected_three(x, weight, grad, window), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 5, 5), (2, 0, 3, 5, 5), (2, 2, 0, 5, 5)], ids=str)
def test_no_tasks_samples_or_channels(sizes):
    x, weight = torch.randn(sizes), torch.randn(sizes[0], sizes[2], 1, 3, 3)
    found = three(x, weight, torch.randn(*sizes[:3], 3, 3), ((1, 1), (0, 0)))
    assert [t.shape for t in found] == [(*sizes[:3], 3, 3), x.shape, weight.shape]
    assert not any(t.any() for t in found)


WINDOW = (2, 1), (1, 2)


def small() -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and a gradient."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 2, 2, 4, 3).double(), torch.randn(2, 2, 1, 3, 2).double()
    return x, weight, torch.randn_like(reference.depthwise_conv(x, weight, *WINDOW))


def forward(x, weight):
    return OPS.depthwise_conv(x, weight, *WINDOW)


@pytest.mark.parametrize("name", ["", "_input_grad", "_weight_grad"])
def test_derivatives(name):
    op, (x, weight, grad) = getattr(OPS, f"depthwise_conv{name}"), small()
    first, second, *sizes = {
        "": (x, weight),
        "_input_grad": (grad, weight, (4, 3)),
        "_weight_grad": (grad, x, (3, 2)),
    }[name]

    def run(first, second):
        return op(first, second, *sizes, *WINDOW)

    check_derivatives(run, (first, second))
    check_third_derivative(run, (first, second))
    single = [t.float().requires_grad_() for t in (first, second)]
    torch.library.opcheck(op.default, (*single, *sizes, *WINDOW))


def test_func_transforms():
    x, weight, _ = small()
    check_func_transforms(
        forward, lambda *args: reference.depthwise_conv(*args, *WINDOW), (x, weight)
    )


def test_compile():
    check_compile(forward, small()[:2])


def test_masks_and_bias_of_a_masked_convolution():
    """A pruned channel is zero, whatever its weights hold; its mask has a gradient."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 2, 6, 9, 8).double(), torch.randn(3, 6, 1, 3, 3).double()
    mask, bias = (torch.rand(3, 6, 1) < 0.5).double(), torch.randn(3, 6).double()
    args = [t.requires_grad_() for t in (x, weight, mask, bias)]

    def derivatives(conv):
        y = conv(*args)
        first = torch.autograd.grad((y.sin() ** 2).sum(), args, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum((g**2).sum() for g in first), args)]

    def ours(x, weight, mask, bias):
        return ms.masked_conv2d(x, weight, mask, bias, stride=2, padding=1, groups=6)

    def plain(x, weight, mask, bias):
        effective = weight * mask[..., None, None]
        each = zip(x, effective, bias, strict=True)
        return torch.stack(
            [torch.nn.functional.conv2d(i, w, b, 2, 1, groups=6) for i, w, b in each]
        )

    torch.testing.assert_close(derivatives(ours), derivatives(plain))
    with torch.no_grad():
        weight[mask[:, :, 0] == 0] = torch.nan
        assert ours(x, weight, mask, bias).isfinite().all()


def test_refusals():
    x, weight = torch.randn(1, 1, 2, 5, 5), torch.randn(1, 2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"expected weight.size\(1\) to be C = 2, got weight"):
        OPS.depthwise_conv(x, weight[:, :1], (1, 1), (0, 0))
    with pytest.raises(ValueError, match=r"a kernel of \[3, 3\] does not fit an input of"):
        OPS.depthwise_conv(x[..., :2, :], weight, (1, 1), (0, 0))
    with pytest.raises(ValueError, match=r"expected grad.size\(3\) = 3"):
        OPS.depthwise_conv_input_grad(x, weight, (5, 5), (1, 1), (0, 0))
