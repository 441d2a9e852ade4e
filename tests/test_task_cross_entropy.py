"""The cross-entropy of tasks against torch's own."""

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
from metasparse_ext.ops.task_cross_entropy import task_cross_entropy

compiled = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")


def drawn(tasks, samples, classes, dtype=torch.float64):
    logits = 3 * torch.randn(tasks, samples, classes)
    return logits.to(dtype), torch.randint(0, classes, (tasks, samples))


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
    ids=str,
)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 25, 5), (3, 7, 64)], ids=str)
def test_equals_the_definition(sizes, dtype, bound):
    logits, labels = drawn(*sizes, dtype)
    expected = reference.task_cross_entropy(logits.double(), labels)
    losses = task_cross_entropy(logits, labels)
    assert losses.dtype == dtype
    torch.testing.assert_close(losses.double(), expected, rtol=bound, atol=bound)


def test_strided_and_shared_operands():
    logits, labels = drawn(3, 6, 10)
    for z, y in ((logits[..., ::2], labels % 5), (logits[:1].expand(3, 6, 10), labels[:1])):
        y = y.expand(3, 6)
        expected = reference.task_cross_entropy(z, y)
        torch.testing.assert_close(task_cross_entropy(z, y), expected)


def test_extreme_logits():
    logits = torch.tensor([[[800.0, -800.0], [0.0, 3e38]], [[-torch.inf, 0.0], [5.0, 5.0]]])
    labels = torch.tensor([[0, 1], [1, 0]])
    expected = reference.task_cross_entropy(logits, labels)
    torch.testing.assert_close(task_cross_entropy(logits, labels), expected)


def test_derivatives():
    logits, labels = drawn(2, 3, 4)
    check_derivatives(lambda z: task_cross_entropy(z, labels), (logits,))
    check_third_derivative(lambda z: task_cross_entropy(z, labels), (logits,))


def test_func_transforms():
    logits, labels = drawn(3, 2, 4)
    check_func_transforms(
        lambda z: task_cross_entropy(z, labels),
        lambda z: reference.task_cross_entropy(z, labels),
        (logits,),
    )


def test_compile():
    logits, labels = drawn(2, 3, 4)
    check_compile(lambda z: task_cross_entropy(z, labels), (logits,))


@compiled
def test_opcheck():
    logits, labels = drawn(2, 3, 4, torch.float32)
    logits.requires_grad_()
    grad, ops = torch.rand(2, requires_grad=True), torch.ops.metasparse
    torch.library.opcheck(ops.task_cross_entropy.default, (logits, labels))
    torch.library.opcheck(ops.task_cross_entropy_backward.default, (grad, logits, labels))
    more = (torch.randn(2, 3, 4), grad, logits, labels)
    torch.library.opcheck(ops.task_cross_entropy_double_backward.default, more)


@compiled
def test_a_label_that_is_no_class():
    logits, labels = drawn(3, 4, 5)
    labels[1, 2], labels[2, 0] = 5, -1
    losses = task_cross_entropy(logits, labels)
    assert losses.isnan().tolist() == [False, True, True]
    dense = torch.ops.metasparse_dense.task_cross_entropy(logits, labels)
    assert dense.isnan().tolist() == [False, True, True]


def test_autocast_gives_float32():
    logits, labels = drawn(2, 3, 4, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert task_cross_entropy(logits, labels).dtype == torch.float32


class TestTriton:
    """The Triton kernels: several turns of a loop, classes that are no power of two."""

    pytestmark = runs_kernels

    @pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 25, 5), (3, 5, 11)], ids=str)
    def test_values_and_derivatives(self, sizes, monkeypatch):
        kernels = pytest.importorskip("metasparse_ext.triton.task_cross_entropy")
        monkeypatch.setattr(kernels, "_BLOCK", 32)
        logits, labels = drawn(*sizes)
        grad, direction = torch.randn(sizes[0]).double(), torch.randn(sizes).double()
        for name, args in {
            "task_cross_entropy": (logits, labels),
            "task_cross_entropy_backward": (grad, logits, labels),
            "task_cross_entropy_double_backward": (direction, grad, logits, labels),
        }.items():
            found = getattr(kernels, name)(*on_device(*args))
            expected = getattr(torch.ops.metasparse_dense, name)(*args)
            torch.testing.assert_close(found, expected)

    def test_a_label_that_is_no_class(self):
        kernels = pytest.importorskip("metasparse_ext.triton.task_cross_entropy")
        logits, labels = drawn(3, 4, 5)
        labels[1, 2], labels[2, 0] = 5, -1
        losses = kernels.task_cross_entropy(*on_device(logits, labels))
        assert losses.isnan().tolist() == [False, True, True]
