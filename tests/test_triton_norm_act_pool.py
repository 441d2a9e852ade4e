"""The Triton kernels of norm_act_pool and its derivatives, against PyTorch's autograd."""

import pytest
import torch
from support.triton_kernels import assert_close, on_device, runs_kernels

from metasparse_ext import reference

triton_ops = pytest.importorskip("metasparse_ext.triton.norm_act_pool", exc_type=ImportError)
pytestmark = runs_kernels

EPS, BLOCK = 1e-3, 64
# relu, pool, norm_first
MODES = {
    "norm": (False, False, True),
    "norm relu": (True, False, True),
    "norm pool": (False, True, True),
    "norm relu pool": (True, True, True),
    "relu norm": (True, False, False),
    "relu pool norm": (True, True, False),
}


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def mode(request):
    return request.param


def block(x, weight, bias, mode):
    relu, pool, norm_first = mode
    order = "norm_act_pool" if norm_first else "act_pool_norm"
    activation = "relu" if relu else "none"
    return reference.norm_act_pool(
        x, weight, bias, eps=EPS, activation=activation, pool=pool, order=order
    )


def operands(affine=True, dtype=torch.float64):
    """x with an odd side, several blocks long and off centre; weights of both signs."""
    x = torch.randn(2, 3, 2, 5, 7, dtype=dtype) + 3
    x[0, 0, 0, :2, :2] = 4.0  # a window of ties
    if not affine:
        return x, None, None
    return x, torch.randn(2, 2, dtype=dtype), torch.randn(2, 2, dtype=dtype)


def launch(name, *args):
    results = getattr(triton_ops, name)(*on_device(*args), block=BLOCK)
    return results.cpu() if isinstance(results, torch.Tensor) else [r.cpu() for r in results]


def point_of(x, weight, bias, mode):
    """Where derivatives are taken: what every kernel but the first wants last."""
    _, pool, norm_first = mode
    _, mean, rstd, gate = launch("norm_act_pool", x, weight, bias, EPS, *mode)
    return x, weight, mean, rstd, gate, EPS, pool, norm_first


def tensors(*values):
    return tuple(v for v in values if v is not None)


def along(mode, affine):
    """The block as a function of the tensors there are."""
    return lambda x, *rest: block(x, *(rest if affine else (None, None)), mode)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_forward(mode, affine, dtype, poisoned_memory):
    x, weight, bias = operands(affine, dtype)
    y, mean, rstd, gate = launch("norm_act_pool", x, weight, bias, EPS, *mode)
    bound = 1e-14 if dtype == torch.float64 else 1e-6
    wide = [t if t is None else t.double() for t in (x, weight, bias)]
    assert_close(y, block(*wide, mode), bound)
    assert mean.shape == rstd.shape == (2, 2)
    assert gate.dtype == torch.uint8
    assert gate.shape == (y.shape if mode[0] or mode[1] else (2, 0))


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_derivatives(mode, affine, poisoned_memory):
    args = operands(affine)
    dots = tuple(None if t is None else torch.randn_like(t) for t in args)
    point = point_of(*args, mode)
    function, given, directions = along(mode, affine), tensors(*args), tensors(*dots)
    y, y_dot = torch.func.jvp(function, given, directions)
    grad = torch.randn_like(y)

    backward = launch("norm_act_pool_backward", grad, *point)
    for actual, expected in zip(backward, torch.func.vjp(function, *given)[1](grad), strict=False):
        assert_close(actual, expected, 1e-13)

    assert_close(launch("norm_act_pool_tangent", *dots, *point), y_dot, 1e-13)

    def along_direction(*inputs):
        return (torch.func.jvp(function, inputs, directions)[1] * grad).sum()

    expected = torch.func.grad(along_direction, tuple(range(len(given))))(*given)
    y_dot_again, x_grad, weight_grad = launch("norm_act_pool_double_backward", *dots, grad, *point)
    assert_close(y_dot_again, y_dot, 1e-13)
    assert_close(x_grad, expected[0], 1e-12)
    if affine:
        assert_close(weight_grad, expected[1], 1e-12)


def test_directions_may_be_missing():
    mode = MODES["norm relu pool"]
    x, weight, bias = operands()
    point, x_dot = point_of(x, weight, bias, mode), torch.randn_like(x)
    zero = torch.zeros_like(weight)
    partial = launch("norm_act_pool_tangent", x_dot, None, None, *point)
    whole = launch("norm_act_pool_tangent", x_dot, zero, zero, *point)
    assert_close(partial, whole, 1e-14)


def test_gates_are_those_of_the_other_backends(mode):
    x, weight, bias = operands()
    *_, gate = launch("norm_act_pool", x, weight, bias, EPS, *mode)
    *_, expected = torch.ops.metasparse_dense.norm_act_pool(x, weight, bias, EPS, *mode)
    assert torch.equal(gate, expected)


def test_nan_spreads_to_its_task_and_channel():
    x, weight, bias = operands()
    clean, *_ = launch("norm_act_pool", x, weight, bias, EPS, *MODES["norm relu pool"])
    x[1, 2, 0, 0, 1] = torch.nan
    y, *_ = launch("norm_act_pool", x, weight, bias, EPS, *MODES["norm relu pool"])
    assert y[1, :, 0].isnan().all()
    y[1, :, 0] = clean[1, :, 0]
    assert torch.equal(y, clean)


def test_shared_and_strided_operands():
    mode = MODES["norm relu pool"]
    x, weight, bias = operands()
    shared = [t[:1].expand(t.shape) for t in (x, weight, bias)]
    y, *_ = launch("norm_act_pool", *shared, EPS, *mode)
    assert_close(y, block(*shared, mode), 1e-14)
    turned = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    y, *_ = launch("norm_act_pool", turned, weight, bias, EPS, *mode)
    assert_close(y, block(x, weight, bias, mode), 1e-14)
