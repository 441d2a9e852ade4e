"""binary_mask against its definition."""

import pytest
import torch
from support.grid import check_compile, check_func_transforms
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext import reference

pytestmark = pytest.mark.usefixtures("device")

by_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)


def surrogate(scores: Tensor) -> Tensor:
    """A function of the mask's value and of the identity's derivative, written with stock ops."""
    return scores + (reference.binary_mask(scores) - scores).detach()


@by_dtype
def test_ones_above_zero(dtype):
    least = torch.finfo(dtype).tiny
    scores = [1.0, -1.0, 0.0, -0.0, least, -least, torch.inf, -torch.inf, torch.nan]
    expected = [1.0, 0, 0, 0, 1, 0, 1, 0, 0]
    for mask in (ms.binary_mask, reference.binary_mask):
        result = mask(torch.tensor(scores, dtype=dtype))
        assert result.dtype == dtype
        assert result.tolist() == expected


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (7,), (3, 5), (2, 3, 4, 5), (300, 1001)], ids=str
)
def test_equals_the_definition(shape):
    scores = torch.randn(shape)
    assert torch.equal(ms.binary_mask(scores), reference.binary_mask(scores))


def test_strided_sliced_and_expanded_scores():
    scores = torch.randn(6, 8)
    for variant in (scores.mT, scores[1::2, ::3], scores[:, :1].expand(6, 5), scores.flip(0)):
        assert torch.equal(ms.binary_mask(variant), reference.binary_mask(variant))


def test_the_gradient_reaches_every_score_unchanged():
    scores = torch.randn(5, 7, requires_grad=True)
    weight = torch.randn(5, 7)
    (grad,) = torch.autograd.grad((ms.binary_mask(scores) * weight).sum(), scores)
    assert torch.equal(grad, weight)


def test_higher_derivatives_of_a_composed_function():
    """MetaDOCK's gate: the logistic's own derivatives around the identity of the threshold."""
    scores = torch.randn(11, dtype=torch.float64, requires_grad=True)

    def derivatives(mask):
        gate = mask(scores.sigmoid() - 0.5)
        value = (gate.pow(3) * scores.cos()).sum()
        results = [value]
        for _ in range(3):
            (grad,) = torch.autograd.grad(results[-1].sum(), scores, create_graph=True)
            results.append(grad)
        return results

    torch.testing.assert_close(derivatives(ms.binary_mask), derivatives(surrogate))


@pytest.mark.parametrize("shape", [(4,), (3, 4)], ids=str)
def test_func_transforms(shape):
    scores = (torch.randn(shape, dtype=torch.float64),)
    check_func_transforms(ms.binary_mask, surrogate, scores)
    check_func_transforms(reference.binary_mask, surrogate, scores)


def test_vmap_over_any_axis():
    scores = torch.randn(3, 4, 5)
    for axis in range(3):
        mapped = torch.vmap(ms.binary_mask, in_dims=axis, out_dims=axis)(scores)
        assert torch.equal(mapped, reference.binary_mask(scores))


def test_changing_the_mask_leaves_the_tangent_of_the_scores_alone():
    scores, tangent = torch.randn(4), torch.randn(4)
    kept = tangent.clone()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(scores, tangent)
        ms.binary_mask(dual).mul_(2.0)
    assert torch.equal(tangent, kept)


def test_compile():
    check_compile(ms.binary_mask, (torch.randn(3, 4, dtype=torch.float64),))


def test_opcheck():
    for scores in (torch.randn(3, 4, requires_grad=True), torch.randn(4, 3).mT):
        torch.library.opcheck(torch.ops.metasparse.binary_mask.default, (scores, 0.0))


def test_autocast_keeps_the_dtype():
    scores = torch.randn(5)
    with torch.autocast(scores.device.type, torch.bfloat16):
        mask = ms.binary_mask(scores)
    assert mask.dtype == torch.float32
    assert torch.equal(mask, reference.binary_mask(scores))


@pytest.mark.parametrize("scores", [torch.ones(3, dtype=torch.int64), torch.ones(3) > 0], ids=str)
def test_scores_of_no_floating_dtype(scores):
    with pytest.raises(TypeError, match="scores to be of a floating dtype, got "):
        ms.binary_mask(scores)
    with pytest.raises(TypeError, match="floating dtype"):
        torch.ops.metasparse.binary_mask(scores, 0.0)


def test_scores_that_nothing_computes_with():
    with pytest.raises(TypeError, match="scores to be of 16 bits a number, or more, got float8_e"):
        ms.binary_mask(torch.ones(3).to(torch.float8_e4m3fn))


def test_scores_that_are_no_tensor():
    with pytest.raises(TypeError, match="scores to be a tensor, got list"):
        ms.binary_mask([1.0])
