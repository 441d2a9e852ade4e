"""The Triton kernels on rows and vectors: top-k masks and conjugate gradients."""

import pytest
import torch
from support.triton_kernels import on_device, runs_kernels

from metasparse_ext import reference
from metasparse_ext.reference import cg as reference_cg

pytest.importorskip("triton")
from metasparse_ext.triton import cg, topk_mask

pytestmark = runs_kernels
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


# ---- top-k ---------------------------------------------------------------------------------------


def topk(scores, k):
    return topk_mask.topk_mask(*on_device(scores, k), block=32).cpu()


def awkward_scores(dtype):
    """Distinct, tied, signed zeros, infinities and small differences, negatives, one value."""
    scores = torch.randn(6, 77).to(dtype)
    scores[1] = scores[1].round()
    scores[2] = 0.0
    scores[2, ::3] = -0.0
    scores[3, 5], scores[3, 6] = torch.inf, -torch.inf
    scores[4] = -(1 + torch.finfo(dtype).eps * torch.randint(0, 9, (77,)).to(dtype))
    scores[5] = -1.5
    return scores


@DTYPES
@pytest.mark.parametrize("k", [0, 1, 30, 77])
def test_topk(dtype, k):
    scores, counts = awkward_scores(dtype), torch.full((6,), k)
    assert torch.equal(topk(scores, counts), reference.topk_mask(scores, counts))


def test_topk_of_strided_rows_with_their_own_counts():
    scores, counts = torch.randn(3, 200)[:, ::2], torch.tensor([5, 50, 99])
    assert torch.equal(topk(scores, counts), reference.topk_mask(scores, counts))


def test_topk_without_an_answer_is_nan():
    scores = torch.randn(4, 50)
    scores[0, 49] = torch.nan
    mask = topk(scores, torch.tensor([3, -1, 51, 3]))
    assert mask[:3].isnan().all()
    assert mask[3].sum() == 3


# ---- conjugate gradients -------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "jacobi"])
@pytest.mark.parametrize("size", [1, 100])
def test_cg_step_is_its_reference(size, preconditioned, dtype):
    """Five tasks: two that run, one that converges, one with a bad direction, one with NaN."""
    x, r, p, m = torch.randn(4, 5, size).to(dtype)
    m = m.abs() if preconditioned else None
    q = 2 * p
    q[3] = -p[3]
    q[4, size // 2] = torch.nan
    z = r if m is None else m * r
    rz, rr = reference_cg.dots(r, z), reference_cg.dots(r, r)
    limit = torch.tensor([0, 0, 1e9, 0, 0]).double()
    status = torch.full((5,), reference_cg.RUNNING)
    status[1] = reference_cg.CONVERGED
    state = (x, r, p, q, m, rz, rr, limit, status, torch.zeros_like(status))
    mine = on_device(*(None if t is None else t.clone() for t in state))
    cg.cg_step(*mine, block=16, steps=2)
    reference_cg.cg_step(*state)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for actual, expected in zip(mine, state, strict=True):
        if expected is not None:
            torch.testing.assert_close(
                actual.cpu(), expected, rtol=bound, atol=bound, equal_nan=True
            )
