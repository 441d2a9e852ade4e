"""masked_conv2d against its definition."""

from typing import NamedTuple

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
from metasparse_ext import reference

pytestmark = pytest.mark.usefixtures("device")


class Case(NamedTuple):
    tasks: int
    samples: int
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def __str__(self) -> str:
        return "-".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in self)

    def args(self, dtype=torch.float64, density=0.6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, weight, mask and bias, all with a task axis."""
        t, n, i, o, *_ = self
        mask = (torch.rand(t, o, i) < density).to(dtype)
        return (
            torch.randn(t, n, i, *self.size, dtype=dtype),
            torch.randn(t, o, i, *self.kernel, dtype=dtype),
            mask,
            torch.randn(t, o, dtype=dtype),
        )

    def op(self, x, weight, mask, bias=None):
        return ms.masked_conv2d(x, weight, mask, bias, self.stride, self.padding)

    def reference(self, x, weight, mask, bias=None):
        return reference.masked_conv(x, weight, mask, bias, self.stride, self.padding)


SMALL = [
    Case(2, 2, 2, 3, (5, 4), (3, 3), (1, 1), (1, 1)),
    Case(2, 1, 3, 2, (5, 7), (3, 3), (2, 2), (1, 1)),
    Case(1, 2, 2, 2, (4, 5), (3, 2), (2, 1), (0, 2)),
    Case(3, 1, 1, 2, (3, 3), (1, 1), (1, 1), (0, 0)),
]
LARGER = [
    Case(3, 5, 7, 11, (13, 9), (3, 3), (1, 1), (1, 1)),
    Case(2, 4, 6, 9, (17, 19), (3, 3), (2, 2), (1, 1)),
    Case(2, 3, 5, 4, (12, 11), (5, 3), (3, 2), (2, 0)),
    Case(1, 25, 16, 16, (7, 7), (3, 3), (1, 1), (1, 1)),
    Case(4, 2, 3, 8, (8, 8), (1, 1), (2, 2), (0, 0)),
    Case(2, 1, 2, 3, (3, 3), (3, 3), (1, 1), (0, 0)),
]
by_case = pytest.mark.parametrize("case", SMALL + LARGER, ids=str)
by_small_case = pytest.mark.parametrize("case", SMALL, ids=str)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def assert_near(actual: Tensor, expected: Tensor, dtype=torch.float64) -> None:
    """Equal up to rounding, relative to the largest entry of what is expected."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 1.0
    error = (actual.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[dtype] * max(scale, 1e-30), f"error {error:.2e} at scale {scale:.2e}"


def all_gradients(f, args) -> list[Tensor]:
    leaves = [arg.detach().clone().requires_grad_() for arg in args]
    y = f(*leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weights).sum(), leaves)]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@by_case
def test_value_and_gradients_equal_the_definition(case, density, dtype):
    args = case.args(density=density)
    expected = all_gradients(case.reference, args)
    actual = all_gradients(case.op, [arg.to(dtype) for arg in args])
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert_near(a, e, dtype)


@pytest.mark.usefixtures("poisoned_memory")
@by_case
def test_gradients_with_a_fixed_mask(case):
    """The active-only weight gradient, which the definition computes densely."""
    x, weight, mask, bias = case.args(density=0.4)
    expected = all_gradients(lambda x, w, b: case.reference(x, w, mask, b), (x, weight, bias))
    actual = all_gradients(lambda x, w, b: case.op(x, w, mask, b), (x, weight, bias))
    for a, e in zip(actual, expected, strict=True):
        assert_near(a, e)


@by_case
def test_what_a_pruned_kernel_holds_is_never_read(case):
    x, weight, mask, bias = case.args(density=0.5)
    poison = torch.where(mask[..., None, None] == 0, torch.nan, weight)

    def gradients(w):
        return all_gradients(lambda x, w, b: case.op(x, w, mask, b), (x, w, bias))

    for poisoned, clean in zip(gradients(poison), gradients(weight), strict=True):
        assert torch.equal(poisoned, clean)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kind", ["zeros and ones", "ones", "real"])
def test_dense_ops_equal_the_definition(kind):
    """The library's convolutions, which few of the small cases above reach by themselves."""
    case = Case(3, 4, 4, 5, (12, 11), (3, 3), (2, 1), (1, 1))
    x, weight, mask, bias = case.args(density=1.0 if kind == "ones" else 0.5)
    mask = mask * torch.rand_like(mask) if kind == "real" else mask
    y, *expected = all_gradients(lambda x, w, b: case.reference(x, w, mask, b), (x, weight, bias))
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    poisoned = torch.where(mask[..., None, None] == 0, torch.nan, weight)
    ops, window = torch.ops.metasparse_dense, (case.stride, case.padding)
    assert_near(ops.masked_conv(x, poisoned, mask, bias, *window), y)
    assert_near(ops.masked_conv_input_grad(grad, poisoned, mask, case.size, *window), expected[0])
    # The definition multiplies by the mask once more, which the caller does for this op.
    actual = ops.masked_conv_weight_grad(grad, x, (mask != 0).to(mask), case.kernel, *window)
    assert_near(actual * mask[..., None, None], expected[1])


@by_case
def test_without_a_mask_every_kernel_is_active(case):
    x, weight, mask, _ = case.args()
    actual = all_gradients(lambda x, w: case.op(x, w, None), (x, weight))
    expected = all_gradients(lambda x, w: case.op(x, w, torch.ones_like(mask)), (x, weight))
    for a, e in zip(actual, expected, strict=True):
        assert_near(a, e)


@by_small_case
def test_derivatives(case):
    check_derivatives(case.op, case.args())


@by_small_case
def test_derivatives_with_a_fixed_mask(case):
    x, weight, mask, bias = case.args()
    check_derivatives(lambda x, w, b: case.op(x, w, mask, b), (x, weight, bias))


def test_third_derivative():
    case = Case(2, 1, 2, 2, (3, 3), (2, 2), (1, 1), (1, 1))
    check_third_derivative(case.op, case.args())


@by_small_case
def test_func_transforms(case):
    check_func_transforms(case.op, case.reference, case.args())


@pytest.mark.parametrize("case", SMALL[:2], ids=str)
def test_compile(case):
    check_compile(case.op, case.args())


def test_compiled_inner_step():
    """A whole MAML step, second derivatives included, inside one compiled function."""
    case = SMALL[0]
    x, weight, mask, _ = case.args()

    def outer(w):
        inner = torch.func.grad(lambda w: case.op(x, w, mask).tanh().sum())
        return case.op(x, w - 0.1 * inner(w), mask).tanh().sum()

    expected = torch.func.grad(outer)(weight)
    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(outer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight), expected)


@by_small_case
def test_opcheck(case):
    x, weight, mask, bias = (arg.requires_grad_() for arg in case.args())
    window = case.stride, case.padding
    ops = torch.ops.metasparse
    grad = torch.randn_like(case.op(x, weight, mask)).requires_grad_()
    for args in [(x, weight, mask, bias), (x, weight, None, None)]:
        torch.library.opcheck(ops.masked_conv.default, (*args, *window))
    for m in (mask, None):
        args = (grad, weight, m, case.size, *window)
        torch.library.opcheck(ops.masked_conv_input_grad.default, args)
        args = (grad, x, m, case.kernel, *window)
        torch.library.opcheck(ops.masked_conv_weight_grad.default, args)
    torch.library.opcheck(ops.masked_conv_mask_grad.default, (grad, x, weight, *window))

    second = (grad, x, weight)
    grad2, x2, weight2 = (torch.randn_like(arg).requires_grad_() for arg in second)
    for m1, m2, b in [(mask, None, bias), (None, mask, None)]:
        args = (x, weight, m1, x2, weight2, m2, b, *window)
        torch.library.opcheck(ops.masked_conv_pair.default, args)
        args = (grad, weight, m1, grad2, weight2, m2, case.size, *window)
        torch.library.opcheck(ops.masked_conv_input_grad_pair.default, args)
        args = (grad, x, grad2, x2, m1, case.kernel, *window)
        torch.library.opcheck(ops.masked_conv_weight_grad_pair.default, args)
    for wanted in [(True, False, True), (False, True, False), (True, True, True)]:
        args = (grad, x, weight, mask, *wanted, *window)
        torch.library.opcheck(ops.masked_conv_backward.default, args)


class Pairs:
    """The sums of two, each as the op that makes them in one pass and as the sum of two ops."""

    def __init__(self, case: Case) -> None:
        ops, window = torch.ops.metasparse, (case.stride, case.padding)
        size, kernel = case.size, case.kernel
        self.fused = {
            "forward": lambda x1, w1, m1, x2, w2, m2, b: ops.masked_conv_pair(
                x1, w1, m1, x2, w2, m2, b, *window
            ),
            "input_grad": lambda g1, w1, m1, g2, w2, m2: ops.masked_conv_input_grad_pair(
                g1, w1, m1, g2, w2, m2, size, *window
            ),
            "weight_grad": lambda g1, x1, g2, x2, m: ops.masked_conv_weight_grad_pair(
                g1, x1, g2, x2, m, kernel, *window
            ),
        }
        self.summed = {
            "forward": lambda x1, w1, m1, x2, w2, m2, b: (
                ops.masked_conv(x1, w1, m1, b, *window) + ops.masked_conv(x2, w2, m2, None, *window)
            ),
            "input_grad": lambda g1, w1, m1, g2, w2, m2: (
                ops.masked_conv_input_grad(g1, w1, m1, size, *window)
                + ops.masked_conv_input_grad(g2, w2, m2, size, *window)
            ),
            "weight_grad": lambda g1, x1, g2, x2, m: (
                ops.masked_conv_weight_grad(g1, x1, m, kernel, *window)
                + ops.masked_conv_weight_grad(g2, x2, m, kernel, *window)
            ),
        }

    @staticmethod
    def args(case: Case, density: float = 0.6) -> dict[str, tuple[Tensor, ...]]:
        x1, w1, m1, bias = case.args(density=density)
        x2, w2, m2, _ = case.args(density=density)
        g1, g2 = (torch.randn_like(case.op(x1, w1, m1)) for _ in range(2))
        return {
            "forward": (x1, w1, m1, x2, w2, m2, bias),
            "input_grad": (g1, w1, m1, g2, w2, m2),
            "weight_grad": (g1, x1, g2, x2, m1),
        }


by_pair = pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@by_pair
@by_case
def test_pairs_equal_the_sum_of_their_terms(case, op, dtype):
    pairs, args = Pairs(case), Pairs.args(case)[op]
    expected = pairs.summed[op](*args)
    assert_near(pairs.fused[op](*(arg.to(dtype) for arg in args)), expected, dtype)


@by_pair
def test_derivatives_of_pairs(op):
    case = Case(2, 1, 1, 2, (3, 2), (2, 2), (1, 1), (1, 1))
    check_derivatives(Pairs(case).fused[op], Pairs.args(case)[op])


@by_pair
def test_func_transforms_of_pairs(op):
    case = SMALL[1]
    pairs = Pairs(case)
    check_func_transforms(pairs.fused[op], pairs.summed[op], Pairs.args(case)[op])


@by_pair
def test_pairs_do_not_read_pruned_kernels(op):
    case = LARGER[0]
    pairs, args = Pairs(case), Pairs.args(case)[op]
    if op == "weight_grad":
        assert not pairs.fused[op](*args)[args[4] == 0].any()
        return
    poisoned = list(args)
    for weight, mask in ((1, 2), (4, 5)):
        poisoned[weight] = torch.where(args[mask][..., None, None] == 0, torch.nan, args[weight])
    assert torch.equal(pairs.fused[op](*poisoned), pairs.fused[op](*args))


def test_pairs_name_what_does_not_match():
    x, weight = torch.zeros(2, 3, 4, 5, 5), torch.zeros(2, 6, 4, 3, 3)
    pair = torch.ops.metasparse.masked_conv_pair
    with pytest.raises(ValueError, match=r"masked_conv_pair: expected x2 of shape .* like x1"):
        pair(x, weight, None, x[:, :2], weight, None, None, (1, 1), (1, 1))
    with pytest.raises(TypeError, match="expected weight2 of dtype float32 like weight1"):
        pair(x, weight, None, x, weight.double(), None, None, (1, 1), (1, 1))


@pytest.mark.parametrize("wanted", [(False, False), (True, False), (False, True), (True, True)])
def test_backward_op(wanted):
    """One op with the gradients wanted; the others are empty."""
    case = SMALL[0]
    x, weight, mask, bias = (arg.requires_grad_() for arg in case.args())
    y = case.op(x, weight, mask, bias)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, weight, bias), grad)
    got = torch.ops.metasparse.masked_conv_backward(
        grad, x, weight, mask, wanted[0], False, wanted[1], case.stride, case.padding
    )
    for k, keep in enumerate((wanted[0], True, wanted[1])):
        if keep:
            assert_near(got[k], expected[k])
        else:
            assert got[k].shape == (case.tasks, 0)


@pytest.mark.parametrize("shared", [(0,), (1,), (2,), (3,), (1, 2, 3), (0, 1, 2, 3)], ids=str)
def test_arguments_without_a_task_axis_are_shared(shared):
    case = Case(3, 4, 5, 6, (9, 8), (3, 3), (2, 1), (1, 1))
    args = [arg[0] if index in shared else arg for index, arg in enumerate(case.args())]
    tasks = 1 if len(shared) == 4 else 3

    def expanded(*args):
        with_tasks = [
            arg.expand(tasks, *arg.shape) if index in shared else arg
            for index, arg in enumerate(args)
        ]
        y = case.reference(*with_tasks)
        return y[0] if len(shared) == 4 else y

    for a, e in zip(all_gradients(case.op, args), all_gradients(expanded, args), strict=True):
        assert_near(a, e)


def test_strided_sliced_and_expanded_inputs():
    case = Case(2, 3, 4, 5, (9, 9), (3, 3), (1, 1), (1, 1))
    x, weight, mask, bias = case.args()
    expected = all_gradients(case.op, (x, weight, mask, bias))
    channels_last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    sliced = torch.cat([weight, weight], dim=1)[:, ::2].repeat_interleave(2, 1)[:, :5]
    assert sliced.shape == weight.shape
    variants = [
        (channels_last, weight, mask, bias),
        (torch.stack([x, x], -1)[..., 0], weight, mask, bias),
        (x, weight.transpose(1, 2).contiguous().transpose(1, 2), mask, bias),
        (x, weight, mask.mT.contiguous().mT, bias.mT.contiguous().mT),
    ]
    for variant in variants:
        y = case.op(*variant)
        assert_near(y, expected[0])
    one = torch.ones((), dtype=x.dtype).expand_as(expected[0])  # a gradient of stride zero
    leaf = x.clone().requires_grad_()
    (actual,) = torch.autograd.grad(case.op(leaf, weight, mask, bias), leaf, one)
    (dense,) = torch.autograd.grad(case.reference(leaf, weight, mask, bias), leaf, one)
    assert_near(actual, dense)


def test_boolean_mask():
    case = SMALL[0]
    x, weight, mask, bias = case.args()
    assert torch.equal(case.op(x, weight, mask.bool(), bias), case.op(x, weight, mask, bias))


def test_a_real_mask_scales_its_kernels():
    case = SMALL[1]
    x, weight, mask, bias = case.args()
    mask = mask * torch.randn_like(mask)
    assert_near(case.op(x, weight, mask, bias), case.reference(x, weight, mask, bias))


def test_no_samples():
    x = torch.empty(2, 0, 3, 5, 5, requires_grad=True)
    weight = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    y = ms.masked_conv2d(x, weight, None, padding=1)
    assert y.shape == (2, 0, 4, 5, 5)
    gx, gw = torch.autograd.grad(y.sum(), (x, weight))
    assert gx.shape == x.shape
    assert torch.equal(gw, torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_computes_in_float32(dtype):
    case = SMALL[0]
    args = [arg.to(dtype) for arg in case.args()]
    with torch.autocast(args[0].device.type, torch.bfloat16):
        y = case.op(*args)
    assert y.dtype == torch.float32
    assert_near(y, case.reference(*(arg.double() for arg in args)), torch.float32)


def test_gradients_reach_a_shared_weight_once_per_task():
    """The gradient of a shared weight is the sum of the tasks' own."""
    case = Case(3, 2, 2, 2, (4, 4), (3, 3), (1, 1), (1, 1))
    x, weight, mask, _ = case.args()
    weight = weight[0].requires_grad_()
    (total,) = torch.autograd.grad(case.op(x, weight, mask).sum(), weight)
    parts = [torch.autograd.grad(case.op(x[t], weight, mask[t]).sum(), weight)[0] for t in range(3)]
    assert_near(total, sum(parts))


X, W, M, B = (torch.zeros(s) for s in [(2, 3, 4, 5, 5), (2, 6, 4, 3, 3), (2, 6, 4), (2, 6)])
BAD = {
    "x rank": (ValueError, "x to be of 4 dimensions, or 3 for one image", (X[0, 0, 0], W, M)),
    "weight rank": (ValueError, "weight to be of 4 dimensions", (X, W[0, 0], M)),
    "mask rank": (ValueError, "mask to be of 2 dimensions", (X, W, M[0, 0])),
    "bias rank": (ValueError, "bias to be of 1 dimensions", (X, W, M, B[None])),
    "tasks of weight": (ValueError, "weight to be for T = 2 tasks like x", (X, W[:1], M)),
    "tasks of mask": (ValueError, "mask to be for T = 2 tasks", (X, W, M[:1])),
    "channels": (ValueError, "weight.*to be I = 4", (X, W[:, :, :3], None)),
    "mask shape": (ValueError, "mask of shape", (X, W, M.mT)),
    "bias shape": (ValueError, "bias.*to be O = 6", (X, W, M, B[:, :5])),
    "kernel too large": (ValueError, "kernels that fit 2 x 2 pixels", (X[..., :2, :2], W, M)),
    "stride": (ValueError, "stride to be at least 1, got 0", (X, W, M, None, 0)),
    "padding": (ValueError, "padding to be at least 0, got -1", (X, W, M, None, 1, -1)),
    "weight dtype": (TypeError, "weight to be of float32 like x, got float64", (X, W.double(), M)),
    "mask dtype": (TypeError, "mask to be of float32 like x", (X, W, M.double())),
    "bias dtype": (TypeError, "bias to be of float32 like x", (X, W, M, B.double())),
    "integer x": (
        TypeError,
        "x to be of float32, float64, bfloat16",
        (X.long(), W.long(), None),
    ),
    "not a tensor": (TypeError, "expected mask to be a tensor, got list", (X, W, [1])),
    "weight missing": (TypeError, "expected weight to be a tensor, got None", (X, None, M)),
    "device": (ValueError, "weight to be on cpu like x, got meta", (X, W.to("meta"), M)),
}


@pytest.mark.parametrize(("error", "message", "args"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(error, message, args):
    with pytest.raises(error, match=message):
        ms.masked_conv2d(*args)


# What nn.Conv2d takes


@pytest.mark.parametrize("tasks", [None, 2])
def test_one_image(tasks):
    image, kernel = torch.randn(3, 6, 5), torch.randn(4, 3, 3, 3)
    bias, mask = torch.randn(4), (torch.rand(4, 3) < 0.5).float()
    if tasks is not None:
        kernel = torch.randn(tasks, 4, 3, 3, 3)
    y = ms.masked_conv2d(image, kernel, mask, bias, 2, 1)
    assert y.shape == (4, 3, 3) if tasks is None else (tasks, 4, 3, 3)
    batch = ms.masked_conv2d(image[None], kernel, mask, bias, 2, 1)
    assert torch.equal(y, batch.squeeze(-4))


@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (1, 4), (5, 2)], ids=str)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_in_words(padding, kernel):
    x, weight = torch.randn(2, 3, 7, 6), torch.randn(4, 3, *kernel)
    expected = torch.nn.functional.conv2d(x, weight, None, 1, padding)
    torch.testing.assert_close(ms.masked_conv2d(x, weight, None, None, 1, padding), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "full"}, "padding to be integers, 'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, "stride to be 1 for padding 'same', got \\(2, 2\\)"),
        ({"stride": (1, 2, 3)}, "stride to be one integer or two"),
        ({"padding": 1.5}, "padding to be one integer or two, got float 1.5"),
    ],
)
def test_bad_windows(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ms.masked_conv2d(torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), None, **options)


def test_a_bias_may_change_before_the_backward_pass():
    """Its value plays no part in any derivative, so it is not kept."""
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    y = ms.masked_conv2d(x, weight, None, bias)
    with torch.no_grad():
        bias.add_(1)
    y.sum().backward()
    assert bias.grad.tolist() == [2 * 4 * 4] * 4


@pytest.mark.parametrize(
    "options", [{}, {"dilation": 2}, {"stride": 2, "padding": 1}, {"groups": 5}]
)
@pytest.mark.parametrize("tasks", [None, 2])
def test_without_input_channels_the_bias_is_left(tasks, options):
    lead = () if tasks is None else (tasks,)
    x, weight = torch.ones(*lead, 2, 0, 7, 6), torch.ones(*lead, 5, 0, 3, 3)
    mask, bias = torch.ones(*lead, 5, 0), torch.randn(*lead, 5, requires_grad=True)
    y = ms.masked_conv2d(x, weight, mask, bias, **options)
    assert y.shape[-3] == 5
    assert torch.equal(y, bias[..., None, :, None, None].expand(y.shape))
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, y.numel() / bias.numel()))
    assert ms.masked_conv2d(x, weight, None, None, **options).eq(0).all()


def test_a_bias_of_another_length_is_named_with_dilation_and_groups():
    x, weight = torch.ones(2, 4, 7, 7), torch.ones(6, 4, 3, 3)
    with pytest.raises(ValueError, match=r"expected bias to be \(6,\), O, got \(3,\)"):
        ms.masked_conv2d(x, weight, None, torch.ones(3), dilation=2)
    with pytest.raises(ValueError, match=r"expected bias to be \(6,\), O, got \(3,\)"):
        ms.masked_conv2d(x, torch.ones(6, 2, 3, 3), None, torch.ones(3), groups=2)
