"""The product of weights and masks and its gradients: two ops, closed under differentiation."""

import pytest
import torch
from support.grid import check_derivatives, check_func_transforms, check_third_derivative
from support.triton_kernels import on_device, runs_kernels

from metasparse_ext import _library, reference

pytestmark = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")


def drawn(tasks=2, kernels=(3, 2), window=(2, 3), dtype=torch.float64):
    weights = torch.randn(2, tasks, *kernels, *window, dtype=dtype)
    masks = torch.randn(2, tasks, *kernels, dtype=dtype)
    return weights[0], masks[0], weights[1], masks[1]


def pair(w1, m1, w2, m2):
    return reference.masked_weight(w1, m1) + reference.masked_weight(w2, m2)


def backward(g, w, m):
    return torch.cat([(g * m[..., None, None]).flatten(), (g * w).sum((-2, -1)).flatten()])


def ours(g, w, m):
    parts = torch.ops.metasparse.masked_weight_backward(g, w, m)
    return torch.cat([part.flatten() for part in parts])


def test_a_pair():
    for dtype in (torch.float64, torch.float32):
        args = drawn(dtype=dtype)
        found = torch.ops.metasparse.masked_weight_pair(*args)
        torch.testing.assert_close(found, pair(*args))


def test_the_gradients():
    weight, mask, grad, _ = drawn()
    torch.testing.assert_close(ours(grad, weight, mask), backward(grad, weight, mask))


def test_operands_that_the_tasks_share_and_of_other_strides():
    weight, mask, grad, _ = drawn(3)
    weight, mask = weight[:1].expand_as(weight), mask[:1].expand_as(mask)
    grad = grad.mT.contiguous().mT
    torch.testing.assert_close(ours(grad, weight, mask), backward(grad, weight, mask))


def test_derivatives():
    weight, mask, grad, other = drawn(kernels=(2, 1), window=(1, 2))
    check_derivatives(torch.ops.metasparse.masked_weight_pair, (weight, mask, grad, other))
    check_derivatives(torch.ops.metasparse.masked_weight_backward, (grad, weight, mask))
    check_third_derivative(ours, (grad, weight, mask))


def test_func_transforms():
    weight, mask, grad, other = drawn(kernels=(2, 1), window=(1, 2))
    run = torch.ops.metasparse.masked_weight_pair
    check_func_transforms(run, pair, (weight, mask, grad, other))
    check_func_transforms(
        lambda *args: torch.ops.metasparse.masked_weight_backward(*args)[1],
        lambda g, w, m: (g * w).sum((-2, -1)) + 0 * m,
        (grad, weight, mask),
    )


def test_opcheck():
    args = [t.float().requires_grad_() for t in drawn()]
    torch.library.opcheck(torch.ops.metasparse.masked_weight_pair.default, args)
    weight, mask, grad, _ = args
    torch.library.opcheck(torch.ops.metasparse.masked_weight_backward.default, (grad, weight, mask))


class TestTriton:
    """The Triton kernels: kernels that do not fill a block, and shared operands."""

    pytestmark = runs_kernels

    @pytest.mark.parametrize("kernels", [(1, 1), (5, 7)], ids=str)
    def test_values(self, kernels):
        launch = pytest.importorskip("metasparse_ext.triton.masked_weight")
        w1, m1, w2, m2 = drawn(3, kernels, (3, 3))
        m2 = m2[:1].expand_as(m2)
        found = launch.masked_weight_pair(*on_device(w1, m1, w2, m2), block=64)
        torch.testing.assert_close(found.cpu(), pair(w1, m1, w2, m2))
        found = launch.masked_weight_backward(*on_device(w1, w2, m2), block=16)
        parts = torch.cat([part.flatten().cpu() for part in found])
        torch.testing.assert_close(parts, backward(w1, w2, m2))

    @pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)], ids=str)
    def test_a_product_does_not_use_what_is_pruned(self, shared):
        launch = pytest.importorskip("metasparse_ext.triton.masked_weight")
        weight, mask, _, _ = drawn(3, (5, 7), (3, 3))
        mask[mask < 0] = 0
        weight[:, 1], mask[:, 1] = float("nan"), 0
        operands = [weight, mask]
        for index in shared:
            operands[index] = operands[index][:1].expand_as(operands[index])
        found = launch.masked_weight(*on_device(*operands), block=64)
        assert found.stride(0) == 0 or len(shared) < 2
        torch.testing.assert_close(found.cpu(), reference.masked_weight(*operands))
