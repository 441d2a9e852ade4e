"""norm_act_pool against its definition."""

import os
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

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

ORDERS = ("norm_act_pool", "norm_pool_act", "act_pool_norm")
KINDS = {
    f"{order}-{activation}-{'pool' if pool else 'whole'}": {
        "order": order,
        "activation": activation,
        "pool": pool,
    }
    for order, activation, pool in product(ORDERS, ("relu", "none"), (False, True))
}
# What is left when kinds that are the same function, or differ in nothing tested, are dropped.
DISTINCT = {
    name: kind
    for name, kind in KINDS.items()
    if kind["order"] != "norm_pool_act" and not name.startswith("act_pool_norm-none")
}
by_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
by_distinct_kind = pytest.mark.parametrize("kind", DISTINCT.values(), ids=DISTINCT.keys())

SHAPES = [
    (2, 3, 4, 5, 7),
    (2, 5, 3, 4, 6),
    (2, 3, 2, 2, 3),
    (1, 5, 3, 14, 14),
    (3, 2, 1, 35, 37),
    (1, 2, 2, 84, 84),
]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}


def arguments(shape=(2, 2, 2, 4, 5), dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias, far from the points where the gate changes."""
    tasks, _, channels, *_ = shape
    x = torch.randperm(torch.Size(shape).numel()).to(dtype).reshape(shape)
    x = 3 * (x / x.numel() - 0.4) + 1e-3
    weight = torch.randn(tasks, channels, dtype=dtype).sign() + 0.1 * torch.randn(
        tasks, channels, dtype=dtype
    )
    return x, weight, 0.3 * torch.randn(tasks, channels, dtype=dtype)


def assert_near(
    actual: Tensor, expected: Tensor, tolerance: float = 1e-11, least_scale: float = 1e-30
) -> None:
    """Equal up to rounding, relative to the largest entry of what is expected."""
    assert actual.shape == expected.shape
    scale = max(expected.abs().max().item(), least_scale)
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= tolerance * scale, f"error {error:.2e} at scale {scale:.2e}"


def wave(t: Tensor) -> Tensor:
    """A fixed direction, the same in both precisions."""
    steps = torch.arange(t.numel(), dtype=torch.float32)
    return (0.5 + (2.5 * steps).sin()).to(t.dtype).view_as(t)


def two_orders(f, args) -> list[Tensor]:
    """The result, its gradients along a direction, and theirs."""
    leaves = [arg.detach().clone().requires_grad_() for arg in args]

    y = f(*leaves)
    first = torch.autograd.grad((y * wave(y)).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(
        sum((g * wave(g)).sum() for g in first), leaves, materialize_grads=True
    )
    return [y, *first, *second]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@by_kind
def test_two_orders_equal_the_definition(kind, shape, dtype):
    args = arguments(shape, dtype)
    expected = two_orders(partial(reference.norm_act_pool, **kind), [arg.double() for arg in args])
    actual = two_orders(partial(ms.norm_act_pool, **kind), args)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        # what is per channel is a sum of so many terms of order one, which may cancel
        terms = args[0][0, :, 0].numel() if a.dim() == 2 else 0
        assert_near(a, e, TOLERANCE[dtype], least_scale=0.01 * terms + 1e-30)


@pytest.mark.host
@by_distinct_kind
def test_results_larger_than_the_caches(kind):
    """They are written past them; a third of these planes begins where such stores may."""
    x, weight, bias = arguments((1, 2, 3, 27, 37), torch.float32)
    args = x.repeat(1, 1, 1, 31, 24)[..., :886].contiguous(), weight, bias
    assert args[0].nbytes > 16 << 20
    expected = two_orders(partial(reference.norm_act_pool, **kind), [arg.double() for arg in args])
    actual = two_orders(partial(ms.norm_act_pool, **kind), args)
    for a, e in zip(actual, expected, strict=True):
        terms = args[0][0, :, 0].numel() if a.dim() == 2 else 0
        assert_near(a, e, TOLERANCE[torch.float32], least_scale=0.01 * terms + 1e-30)


@by_distinct_kind
def test_derivatives(kind):
    check_derivatives(partial(ms.norm_act_pool, **kind), arguments((2, 1, 2, 4, 3)))


@by_distinct_kind
def test_third_derivative(kind):
    check_third_derivative(partial(ms.norm_act_pool, **kind), arguments((2, 1, 1, 4, 5)))


@by_distinct_kind
def test_func_transforms(kind):
    check_func_transforms(
        partial(ms.norm_act_pool, **kind), partial(reference.norm_act_pool, **kind), arguments()
    )


@by_distinct_kind
def test_forward_over_second_order(kind):
    """Forward mode through the double backward pass and through the tangent."""
    args = arguments((1, 2, 2, 4, 3))
    dots = tuple(torch.randn_like(arg) for arg in args)

    def hessian_product(op):
        def gradients(*inputs):
            return torch.func.grad(lambda *i: op(*i, **kind).tanh().sum(), (0, 1, 2))(*inputs)

        def reverse_over_reverse(*inputs):
            return torch.func.vjp(gradients, *inputs)[1](dots)

        def forward_over_reverse(*inputs):
            return torch.func.jvp(gradients, inputs, dots)[1]

        return [
            torch.func.jvp(product, args, dots)[1]
            for product in (reverse_over_reverse, forward_over_reverse)
        ]

    expected = hessian_product(reference.norm_act_pool)
    for actual in hessian_product(ms.norm_act_pool):
        torch.testing.assert_close(actual, expected[0])
    torch.testing.assert_close(expected[0], expected[1])


@pytest.mark.parametrize("affine", ["weight", "bias", "neither"])
@by_distinct_kind
def test_optional_weight_and_bias(kind, affine):
    x, weight, bias = arguments()
    given = {"weight": weight, "bias": bias, "neither": None}[affine]

    def apply(op, x, *affine_args):
        return op(x, **({affine: affine_args[0]} if affine_args else {}), **kind)

    args = (x,) if given is None else (x, given)
    expected = two_orders(partial(apply, reference.norm_act_pool), args)
    for a, e in zip(two_orders(partial(apply, ms.norm_act_pool), args), expected, strict=True):
        assert_near(a, e)
    check_third_derivative(partial(apply, ms.norm_act_pool), args)


@pytest.mark.parametrize("kind", list(DISTINCT.values())[:2], ids=list(DISTINCT)[:2])
def test_compile(kind):
    check_compile(partial(ms.norm_act_pool, **kind), arguments())


@pytest.mark.parametrize(
    ("relu", "pool", "affine"), [(True, True, True), (False, False, False)], ids=["all", "bare"]
)
def test_opcheck(relu, pool, affine):
    x, weight, bias = (arg.requires_grad_() for arg in arguments())
    w, b = (weight, bias) if affine else (None, None)
    ops = torch.ops.metasparse
    args = (x, w, b, 1e-5, relu, pool, True)
    torch.library.opcheck(ops.norm_act_pool.default, args)
    y, mean, rstd, gate = ops.norm_act_pool(*args)
    grad, x_dot = (torch.randn_like(t).requires_grad_() for t in (y, x))
    w_dot, b_dot = (None if t is None else torch.randn_like(t) for t in (w, b))
    direction = (x_dot, w_dot, b_dot)
    point = (x, w, mean, rstd, gate, 1e-5, pool, True)
    torch.library.opcheck(ops.norm_act_pool_backward.default, (grad, *point))
    torch.library.opcheck(ops.norm_act_pool_tangent.default, (*direction, *point))
    torch.library.opcheck(ops.norm_act_pool_double_backward.default, (*direction, grad, *point))


@pytest.mark.parametrize("axes", list(product((False, True), repeat=3)), ids=str)
@by_distinct_kind
def test_arguments_without_a_task_axis_are_shared(kind, axes):
    args = [
        arg if axis else arg[0] for arg, axis in zip(arguments((3, 2, 4, 6, 5)), axes, strict=True)
    ]
    actual = two_orders(partial(ms.norm_act_pool, **kind), args)
    assert actual[0].dim() == (5 if any(axes) else 4)
    expected = two_orders(partial(reference.norm_act_pool, **kind), args)
    for a, e in zip(actual, expected, strict=True):
        assert_near(a, e)


@by_distinct_kind
def test_strided_sliced_and_expanded_inputs(kind):
    x, weight, bias = arguments((2, 3, 4, 7, 6))
    op = partial(ms.norm_act_pool, **kind)
    expected = two_orders(op, (x, weight, bias))
    variants = {
        "channels last": (x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3), weight),
        "sliced channels": (torch.cat([x, x], 2)[:, :, 4:], torch.cat([weight, weight], 1)[:, 4:]),
        "swapped": (x.transpose(0, 1).contiguous().transpose(0, 1), weight.mT.contiguous().mT),
        "gaps": (torch.stack([x, x], -1)[..., 0], torch.stack([weight, weight], -1)[..., 0]),
        "cropped": (torch.nn.functional.pad(x, (1, 2, 3, 4))[..., 3:-4, 1:-2], weight),
    }
    for name, (xv, wv) in variants.items():
        leaves = [t.detach().requires_grad_() for t in (xv, wv)]  # keeps the strides
        y = op(*leaves, bias)
        gradients = torch.autograd.grad(y, leaves, wave(y))
        for a, e in zip((y, *gradients), expected[:3], strict=True):
            assert_near(a, e), name
    one_task = x[:1].expand(3, -1, -1, -1, -1)
    y = op(one_task, weight[0], bias[0])
    for task in y:
        assert torch.equal(task, y[0])
    leaf = x.clone().requires_grad_()  # the gradient of a sum has no strides
    for f in (op, partial(reference.norm_act_pool, **kind)):
        y = f(leaf, weight, bias)
        (gradient,) = torch.autograd.grad(y, leaf, torch.ones((), dtype=y.dtype).expand_as(y))
        if f is op:
            ours = gradient
    assert (ours - gradient).abs().max() < 1e-12


@by_distinct_kind
def test_a_nan_spreads_to_its_task_and_channel_alone(kind):
    x, weight, bias = arguments((2, 3, 2, 5, 4))
    clean = two_orders(partial(ms.norm_act_pool, **kind), (x, weight, bias))
    x[1, 2, 0, 1, 1] = torch.nan
    actual = two_orders(partial(ms.norm_act_pool, **kind), (x, weight, bias))
    for a, c in zip(actual[:2], clean[:2], strict=True):
        assert a[1, :, 0].isnan().any()
        for task, channel in ((0, 0), (0, 1), (1, 1)):
            assert torch.equal(a[task, :, channel], c[task, :, channel])
    assert actual[0][1, :, 0].isnan().all()


@pytest.mark.parametrize("pool", [False, True], ids=["whole", "pool"])
@pytest.mark.parametrize("order", ORDERS)
def test_ties_go_to_the_first_element_and_zero_is_closed(order, pool):
    """Constant channels: every window is tied, and the variance is zero."""
    x = torch.zeros(1, 2, 1, 4, 4, dtype=torch.float64)
    x[0, 1] = 2.0
    weight = torch.tensor([[1.0]], dtype=torch.float64)
    for bias in (-0.5, 0.0, 0.5):
        args = (x, weight, torch.full_like(weight, bias))
        kind = {"order": order, "pool": pool}
        expected = two_orders(partial(reference.norm_act_pool, **kind), args)
        for a, e in zip(two_orders(partial(ms.norm_act_pool, **kind), args), expected, strict=True):
            assert_near(a, e)


@by_distinct_kind
def test_zero_variance_and_a_single_value(kind):
    constant = torch.full((2, 3, 2, 4, 4), 1e4)
    single = torch.rand(2, 1, 2, *([2, 2] if kind["pool"] else [1, 1]))
    for x in (constant, single):
        bias = torch.tensor([0.25, 0.75])
        y = ms.norm_act_pool(x, bias=bias, **kind)
        if x is constant or kind["order"] == "act_pool_norm" or not kind["pool"]:
            assert_near(y, bias.view(2, 1, 1).expand_as(y), 1e-6)
        for a in two_orders(partial(ms.norm_act_pool, **kind), (x, bias, bias)):
            assert a.isfinite().all()


def test_statistics_of_a_large_offset_keep_their_digits():
    noise = torch.randn(1, 25, 3, 28, 28, dtype=torch.float64)
    x = (noise + 4096).float()
    expected = reference.norm_act_pool(x.double())
    assert_near(
        ms.norm_act_pool(x), expected, 1e-4
    )  # half a unit of the rounded x, not of x squared
    halves = torch.cat([noise[:, :12], noise[:, 12:] + 4096], 1).float()
    assert_near(ms.norm_act_pool(halves), reference.norm_act_pool(halves.double()), 1e-6)


@pytest.mark.host
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Two orders in a process that is held to one instruction set."""
    code = f"""
import torch, metasparse_ext as ms
import test_norm_act_pool as t
assert ms.info()["cpu"] == "{isa}"
for kind in t.DISTINCT.values():
    for shape in t.SHAPES:
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            t.test_two_orders_equal_the_definition(kind, shape, dtype)
    t.test_results_larger_than_the_caches(kind)
"""
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "METASPARSE_CPU_ISA": isa,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if "does not have" in result.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert result.returncode == 0, result.stderr


@pytest.mark.host
def test_results_do_not_depend_on_threads():
    x, weight, bias = arguments((3, 4, 5, 21, 20), torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(two_orders(partial(ms.norm_act_pool, pool=True), (x, weight, bias)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_tasks():
    x = torch.empty(0, 2, 3, 4, 4, requires_grad=True)
    y = ms.norm_act_pool(x, torch.ones(3), pool=True)
    assert y.shape == (0, 2, 3, 2, 2)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_computes_in_float32(dtype):
    args = [arg.to(dtype) for arg in arguments()]
    with torch.autocast(args[0].device.type, torch.bfloat16):
        y = ms.norm_act_pool(*args, pool=True)
    assert y.dtype == torch.float32
    assert_near(y, reference.norm_act_pool(*(arg.double() for arg in args), pool=True), 1e-5)


def test_pool_given_as_the_window():
    x, weight, bias = arguments()
    assert torch.equal(
        ms.norm_act_pool(x, weight, bias, pool=2), ms.norm_act_pool(x, weight, bias, pool=True)
    )


X, W = torch.zeros(2, 3, 4, 5, 5), torch.zeros(2, 4)
BAD = {
    "activation": (ValueError, "activation to be one of", (X,), {"activation": "gelu"}),
    "order": (ValueError, "order to be one of", (X,), {"order": "pool_norm_act"}),
    "pool": (ValueError, "pool to be one of False, True, 0, 2, got 3", (X,), {"pool": 3}),
    "eps": (ValueError, "eps to be at least 0.0, got -1", (X,), {"eps": -1}),
    "nan eps": (ValueError, "eps to be finite, got nan", (X,), {"eps": float("nan")}),
    "x rank": (ValueError, "x to be of shape", (X[0, 0],), {}),
    "no samples": (ValueError, "N >= 1", (X[:, :0],), {}),
    "nothing to pool": (ValueError, "H, W >= 2", (X[..., :1],), {"pool": True}),
    "weight shape": (ValueError, r"weight to be of shape \(4,\) or \(2, 4\)", (X, W[:, :3]), {}),
    "weight tasks": (ValueError, r"weight to be of shape \(4,\) or \(2, 4\)", (X, W[:1]), {}),
    "bias shape": (ValueError, r"bias to be of shape \(4,\)", (X, None, W[None]), {}),
    "bias tasks": (ValueError, r"bias to be of shape \(4,\) or \(2, 4\)", (X[0], W, W[:1]), {}),
    "x dtype": (TypeError, "x to be of float32, float64", (X.long(),), {}),
    "weight dtype": (TypeError, "weight to be of float32 like x", (X, W.double()), {}),
    "not a tensor": (TypeError, "expected x to be a tensor, got list", ([1.0],), {}),
    "weight not a tensor": (TypeError, "weight to be a tensor", (X, 1.0), {}),
}


@pytest.mark.parametrize(("error", "message", "args", "options"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(error, message, args, options):
    with pytest.raises(error, match=message):
        ms.norm_act_pool(*args, **options)
