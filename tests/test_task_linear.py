"""The linear layer of tasks and its gradients: ops that are closed under differentiation."""

import pytest
import torch
from support.grid import (
    check_compile,
    check_derivatives,
    check_func_transforms,
    check_third_derivative,
)
from support.triton_kernels import on_device, runs_kernels

from metasparse_ext import _library, reference

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")

OPS = torch.ops.metasparse


def drawn(tasks=2, samples=3, features=4, outputs=2, dtype=torch.float64):
    sizes = (tasks, samples, features), (tasks, outputs, features), (tasks, outputs)
    x, weight, bias = (torch.randn(size, dtype=dtype) for size in sizes)
    return x, weight, bias, torch.randn(tasks, samples, outputs, dtype=dtype)


def pair(x1, w1, x2, w2, b):
    return reference.task_linear(x1, w1, b) + reference.task_linear(x2, w2, None)


def backward(g, x, w):
    return torch.cat([part.flatten() for part in (g @ w, g.mT @ x, g.sum(1))])


def ours(g, x, w):
    return torch.cat([part.flatten() for part in OPS.task_linear_backward(g, x, w)])


def test_values():
    x, weight, bias, grad = drawn()
    for b in (bias, None):
        found = OPS.task_linear(x, weight, b)
        torch.testing.assert_close(found, reference.task_linear(x, weight, b))
        found = OPS.task_linear_pair(x, weight, x + 1, weight - 1, b)
        torch.testing.assert_close(found, pair(x, weight, x + 1, weight - 1, b))
    torch.testing.assert_close(ours(grad, x, weight), backward(grad, x, weight))


def test_derivatives():
    x, weight, bias, grad = drawn(features=2)
    check_derivatives(OPS.task_linear, (x, weight, bias))
    check_derivatives(OPS.task_linear_pair, (x, weight, x + 1, weight + 1, bias))
    check_derivatives(OPS.task_linear_backward, (grad, x, weight))
    check_third_derivative(ours, (grad, x, weight))


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_gradients_of_some_operands(chosen):
    x, weight, bias, grad = drawn()
    for run, args in ((OPS.task_linear, (x, weight, bias)), (ours, (grad, x, weight))):
        inputs = [args[i].clone().requires_grad_() for i in chosen]

        def call(*some, run=run, args=args):
            return run(*(some[chosen.index(i)] if i in chosen else args[i] for i in range(3)))

        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


def test_func_transforms():
    x, weight, bias, grad = drawn(tasks=3, features=2)
    check_func_transforms(OPS.task_linear, reference.task_linear, (x, weight, bias))
    check_func_transforms(ours, backward, (grad, x, weight))


def test_compile():
    check_compile(OPS.task_linear, drawn()[:3])


def test_opcheck():
    x, weight, bias, grad = (t.requires_grad_() for t in drawn(dtype=torch.float32))
    torch.library.opcheck(OPS.task_linear.default, (x, weight, bias))
    torch.library.opcheck(OPS.task_linear_pair.default, (x, weight, x, weight, bias))
    torch.library.opcheck(OPS.task_linear_backward.default, (grad, x, weight))


class TestTriton:
    """The Triton kernel: several turns of its loop, sizes that fill no block, shared weights."""

    pytestmark = runs_kernels

    @pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 70, 33, 5), (3, 5, 64, 17)], ids=str)
    def test_values(self, sizes):
        launch = pytest.importorskip("metasparse_ext.triton.task_linear")
        x, weight, _, grad = drawn(*sizes)
        weight = weight[:1].expand_as(weight)
        found = launch.task_linear_backward(*on_device(grad, x, weight))
        parts = torch.cat([part.flatten().cpu() for part in found])
        torch.testing.assert_close(parts, backward(grad, x, weight))
        assert found[1].is_contiguous()

    def test_more_outputs_than_a_program_has(self):
        launch = pytest.importorskip("metasparse_ext.triton.task_linear")
        x, weight, _, grad = drawn(1, 2, 3, 130)
        found = launch.task_linear_backward(*on_device(grad, x, weight))
        parts = torch.cat([part.flatten().cpu() for part in found])
        torch.testing.assert_close(parts, backward(grad, x, weight))
