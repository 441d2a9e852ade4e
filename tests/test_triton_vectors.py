"""The Triton kernels on rows and vectors: top-k masks, conjugate gradients, the softmax head."""

import pytest
import torch
from support.triton_kernels import DEVICE, assert_close, on_device, runs_kernels

from metasparse_ext import reference
from metasparse_ext.reference import cg as reference_cg
from metasparse_ext.reference import softmax_head as reference_head

pytest.importorskip("triton")
from metasparse_ext.triton import cg, softmax_head, topk_mask

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


# ---- softmax head --------------------------------------------------------------------------------


def head_problem(dtype, tasks=2, samples=7, classes=3, size=40):
    features = torch.randn(tasks, samples, size).to(dtype)
    labels = torch.randint(0, classes, (tasks, samples))
    center = torch.randn(tasks, classes, size).to(dtype)
    return features, labels, center, (torch.rand(tasks) + 0.3).to(dtype)


def solve(problem, tolerance=1e-12, iterations=50):
    results = softmax_head.softmax_head(*on_device(*problem), tolerance, iterations)
    return [r.cpu() for r in results]


@DTYPES
@pytest.mark.parametrize("sizes", [(2, 7, 3, 40), (1, 1, 2, 5), (1, 18, 3, 9)], ids=str)
def test_softmax_head(sizes, dtype):
    problem = head_problem(dtype, *sizes)
    bound = 1e-12 if dtype == torch.float64 else 1e-6
    weight, iterations, residual, status = solve(problem)
    expected, *_ = reference_head.softmax_head(*problem, 1e-12, 50)
    assert_close(weight, expected, bound)
    assert status.tolist() == [reference_head.CONVERGED] * sizes[0]
    assert (residual <= 1e-12).all()
    assert (iterations > 0).all()
    grad = torch.randn_like(weight)
    args = (grad, expected, *problem)
    actual = softmax_head.softmax_head_grad(*on_device(*args))
    for mine, theirs in zip(actual, reference_head.softmax_head_grad(*args), strict=True):
        assert_close(mine.cpu(), theirs, max(bound, 1e-11))


def test_softmax_head_stops_each_task_by_itself():
    features, labels, center, lam = head_problem(torch.float64, tasks=3)
    features[1, 0, 0] = torch.nan
    lam[2] = 1e3
    weight, iterations, _, status = solve((features, labels, center, lam))
    assert status.tolist() == [0, reference_head.NOT_FINITE, 0]
    assert iterations[2] < iterations[0]
    assert weight[[0, 2]].isfinite().all()
    *_, status = solve((features, labels, center, lam), iterations=1)
    assert status[0] == reference_head.ITERATIONS


def test_features_are_read_in_columns():
    problem = on_device(*head_problem(torch.float64))
    whole = softmax_head.softmax_head(*problem, 1e-12, 50, columns=64)[0]
    parts = softmax_head.softmax_head(*problem, 1e-12, 50, columns=16)[0]
    assert_close(whole.cpu(), parts.cpu(), 1e-13)
    assert whole.device.type == DEVICE
