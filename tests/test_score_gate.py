"""score_gate and the gradient of a budget against their definitions."""

import pytest
import torch
from support.grid import check_compile, check_func_transforms
from support.triton_kernels import on_device, runs_kernels

import metasparse_ext as ms
from metasparse_ext import _library, reference
from metasparse_ext.ops.score_gate import add_budget_gradient, score_gate

compiled = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)


def surrogate(scores):
    """Its value and the derivatives of the logistic, written with stock ops."""
    logistic = scores.sigmoid()
    return logistic + ((logistic > 0.5).to(scores.dtype) - logistic).detach()


@DTYPES
def test_open_where_the_logistic_exceeds_one_half(dtype):
    """That of a tiny score is rounded to one half, which does not."""
    tiny = torch.finfo(dtype).eps * 2.0 ** torch.arange(-3.0, 8.0)
    scores = torch.cat([tiny, -tiny, torch.tensor([0.0, -0.0, 50.0, -50.0, torch.inf, torch.nan])])
    scores = scores.to(dtype)
    assert torch.equal(score_gate(scores), (scores.sigmoid() > 0.5).to(dtype))
    assert torch.equal(score_gate(scores), ms.binary_mask(scores.sigmoid(), 0.5))


def test_strided_and_expanded_scores():
    scores = torch.randn(6, 8)
    for variant in (scores.mT, scores[1::2, ::3], scores[:, :1].expand(6, 5), scores[:0]):
        assert torch.equal(score_gate(variant), reference.score_gate(variant))


def test_derivatives_of_every_order():
    scores = torch.randn(11, dtype=torch.float64, requires_grad=True)

    def derivatives(gate):
        results = [(gate(scores).pow(3) * scores.cos()).sum()]
        for _ in range(5):
            (grad,) = torch.autograd.grad(results[-1].sum(), scores, create_graph=True)
            results.append(grad)
        return results

    torch.testing.assert_close(derivatives(score_gate), derivatives(surrogate))


@compiled
def test_the_derivative_is_linear_in_its_factors():
    """Gradients in both of them, and in the scores."""
    grad, factor, scores = torch.randn(3, 2, 5, dtype=torch.float64)
    run = torch.ops.metasparse.score_gate_grad
    for order in (1, 2, 3):
        inputs = [t.clone().requires_grad_() for t in (grad, factor, scores)]
        assert torch.autograd.gradcheck(lambda *t, n=order: run(*t, n), inputs)
        assert torch.autograd.gradgradcheck(lambda *t, n=order: run(*t, n), inputs)


@pytest.mark.parametrize("shape", [(4,), (3, 4)], ids=str)
def test_func_transforms(shape):
    scores = (torch.randn(shape, dtype=torch.float64),)
    check_func_transforms(score_gate, surrogate, scores)


def test_compile():
    check_compile(score_gate, (torch.randn(3, 4, dtype=torch.float64),))


@compiled
def test_opcheck():
    scores = torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.metasparse.score_gate.default, (scores,))
    args = (torch.randn(3, 4, requires_grad=True), None, scores, 1)
    torch.library.opcheck(torch.ops.metasparse.score_gate_grad.default, args)
    rest = (torch.ones(()), torch.ones(()), 0.5)
    args = (torch.randn(3, 4), torch.randn(3, 4), *rest)
    torch.library.opcheck(torch.ops.metasparse.add_budget_gradient.default, args)


def test_scores_of_another_kind():
    with pytest.raises(TypeError, match="score_gate: expected scores to be"):
        score_gate(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"scores to be of one axis at least, got shape \(\)"):
        score_gate(torch.ones(()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_budget_adds_to_a_slice_in_place(dtype):
    buffer, phi = torch.randn(2, 3, 50).to(dtype)
    offset, share = torch.tensor([-0.5, 0.1]).to(dtype)
    expected = buffer.clone()
    reference.add_budget_gradient(expected[:, 9:], phi[:, 9:], offset, share, 0.25)
    add_budget_gradient(buffer[:, 9:], phi[:, 9:], offset, share, 0.25)
    torch.testing.assert_close(buffer, expected)


class TestTriton:
    """The Triton kernels, on rows of odd sizes that lie in a wider buffer."""

    pytestmark = runs_kernels

    @pytest.mark.parametrize("size", [1, 64, 201])
    def test_gates_and_their_gradients(self, size):
        kernels = pytest.importorskip("metasparse_ext.triton.score_gate")
        grad, factor, scores = torch.randn(3, 2, size + 7, dtype=torch.float64)[..., 7:]
        run = {"block": 64}
        mask = kernels.score_gate(*on_device(scores), **run).cpu()
        assert torch.equal(mask, reference.score_gate(scores))
        for order in (1, 2, 3):
            for other in (factor, None):
                expected = torch.ops.metasparse_dense.score_gate_grad(grad, other, scores, order)
                found = kernels.score_gate_grad(*on_device(grad, other, scores), order, **run)
                torch.testing.assert_close(found.cpu(), expected)

    @pytest.mark.parametrize("size", [1, 64, 201])
    def test_a_budget(self, size):
        kernels = pytest.importorskip("metasparse_ext.triton.score_gate")
        buffer, phi = torch.randn(2, 3, size + 7, dtype=torch.float64)
        phi[:, 8:10] = 0
        more = torch.tensor(0.5).double(), torch.tensor(-0.1).double(), 0.3
        expected = buffer.clone()
        reference.add_budget_gradient(expected[:, 7:], phi[:, 7:], *more)
        found, phi, *more = on_device(buffer, phi, *more)
        kernels.add_budget_gradient(found[:, 7:], phi[:, 7:], *more, block=64)
        torch.testing.assert_close(found.cpu(), expected)
