"""The CUDA C++ kernels against the reference, on a CPU: every block, thread and barrier emulated.

What this cannot see is the hardware: timing, and how the compiled code behaves. The rest it sees:
the arithmetic, the indices, missing barriers, unwritten outputs, reads of pruned weights, and the
bindings.
"""

import re
import shutil

import pytest
import torch
from support import cuda_emulator
from support.softmax_head import Head
from torch import Tensor

from metasparse_ext.implicit import HeadProblem
from metasparse_ext.reference import cg, softmax_head, topk_mask

pytestmark = [
    pytest.mark.skipif(shutil.which(cuda_emulator.COMPILER) is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("poisoned_memory", "one_thread"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(scope="module")
def ops():
    return cuda_emulator.load()


@pytest.fixture(params=[(8, 80), (9, 80), (9, 90)], ids=["sm_80", "sm_80 on 9.0", "sm_90"])
def device(request, monkeypatch):
    """The emulated device and the code that runs on it: without clusters, twice, and with."""
    major, code = request.param
    monkeypatch.setenv("METASPARSE_EMULATED_MAJOR", str(major))
    monkeypatch.setenv("METASPARSE_EMULATED_PTX", str(code))


# ---- masks ---------------------------------------------------------------------------------------


def hard_rows(n: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(n, dtype=dtype)
    half = torch.rand(n) < 0.5
    return torch.stack(
        [
            x,
            torch.full_like(x, -3.5),
            (x * 2).round(),
            x.abs() * half,
            torch.where(half, 0.0, -0.0).to(dtype),
            torch.where(half, x, x.sign() * torch.inf),
            x.sign() * torch.finfo(dtype).tiny * torch.rand(n, dtype=dtype),
            x.sign() * torch.exp(x * 15),
        ]
    )


@DTYPES
@pytest.mark.parametrize("n", [1, 31, 1027])
def test_topk_mask_is_its_definition(ops, n, dtype):
    scores = hard_rows(n, dtype)
    for density in (0.0, 0.13, 0.5, 1.0):
        k = torch.full((len(scores),), round(density * n))
        assert torch.equal(ops.topk_mask(scores, k), topk_mask(scores, k))


@DTYPES
def test_topk_mask_of_long_rows(ops, device, dtype):
    scores = hard_rows(4201, dtype)[[0, 2, 4]]  # more than one block takes
    k = torch.tensor([42, 1680, 3000])
    assert torch.equal(ops.topk_mask(scores, k), topk_mask(scores, k))


def test_topk_mask_takes_sliced_rows_and_a_count_for_each(ops):
    scores, k = torch.randn(3, 901)[:, 3:803], torch.tensor([0, 17, 800])
    assert torch.equal(ops.topk_mask(scores, k), topk_mask(scores, k))
    columns, k = scores[:, :9].T, torch.arange(9) % 4
    assert torch.equal(ops.topk_mask(columns, k), topk_mask(columns, k))


@pytest.mark.parametrize("n", [70, 4200], ids=lambda n: f"n={n}")
def test_rows_without_an_answer_are_nan(ops, n):
    scores = torch.randn(3, n)
    scores[0, n - 1] = torch.nan
    assert ops.topk_mask(scores, torch.tensor([10, -1, n + 1])).isnan().all()


# ---- conjugate gradients -------------------------------------------------------------------------


def cg_state(dtype: torch.dtype, preconditioned: bool) -> list[Tensor | None]:
    """Tasks that run, converge, meet no curvature, NaN, and have converged before."""
    tasks, size = 6, 1003
    r, p, x = (torch.randn(tasks, size, dtype=dtype) for _ in range(3))
    q = p * torch.rand(tasks, size, dtype=dtype)
    q[2] *= -1
    q[3, 5] = torch.nan
    p[5] = 0
    diagonal = torch.rand(tasks, size, dtype=dtype) if preconditioned else None
    rz = cg.dots(r, r if diagonal is None else diagonal * r)
    limit = torch.tensor([0, 1e9, 0, 0, 0, 0]).double()
    status = torch.tensor([1, 1, 1, 1, 0, 1])
    return [x, r, p, q, diagonal, rz, cg.dots(r, r), limit, status, torch.arange(tasks)]


@DTYPES
@pytest.mark.parametrize("preconditioned", [False, True], ids=["plain", "preconditioned"])
def test_cg_step_is_its_definition(ops, device, dtype, preconditioned):
    expected = cg_state(dtype, preconditioned)
    actual = [None if t is None else t.clone() for t in expected]
    cg.cg_step(*expected)
    ops.cg_step(*actual)
    assert expected[8].tolist() == [1, 0, 2, 3, 0, 2]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_cg_step_of_nothing(ops, device):
    state = [None if t is None else t[:0] for t in cg_state(torch.float32, False)]
    ops.cg_step(*state)


# ---- the softmax head ----------------------------------------------------------------------------

HEADS = {
    "one-sample": (2, 1, 5, 3),
    "two-classes": (1, 9, 33, 2),
    "one-class": (2, 4, 3, 1),
    "five-classes": (2, 25, 64, 5),
    "many-classes": (1, 14, 20, 21),
    "more-samples-than-features": (1, 40, 4, 5),
}


def head(tasks: int, samples: int, size: int, classes: int, dtype=torch.float64):
    features, center = torch.randn(tasks, samples, size), torch.randn(tasks, classes, size) / 3
    labels = torch.randint(classes, (tasks, samples))
    lam = torch.rand(tasks) + 0.1
    return features.to(dtype), labels, center.to(dtype), lam.to(dtype)


def close(actual, expected, tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", HEADS.values(), ids=HEADS)
def test_softmax_head_is_its_definition(ops, shape):
    problem = head(*shape)
    actual = ops.softmax_head(*problem, 1e-13, 50)
    expected = softmax_head.softmax_head(*problem, 1e-13, 50)
    close(actual[:1], expected[:1], 1e-9)
    assert torch.equal(actual[3], expected[3])
    grad = torch.randn_like(problem[2])
    arguments = (grad, actual[0], *problem)
    close(ops.softmax_head_grad(*arguments), softmax_head.softmax_head_grad(*arguments), 1e-9)


@pytest.mark.parametrize(
    "drawn",
    [
        Head(
            samples=6,
            features=3,
            classes=2,
            lam=0.01,
            layouts=("contiguous", "overlapping", "contiguous"),
        ),
        Head(
            tasks=2,
            samples=16,
            features=16,
            classes=4,
            spread=3.0,
            layouts=("constant", "constant", "contiguous"),
            data=987068,
        ),
    ],
    ids=["more samples than features", "samples that are alike"],
)
def test_softmax_head_of_samples_that_depend_on_each_other(ops, drawn):
    given, labels = drawn.problem()
    center = given["weight"].expand(drawn.tasks, -1, -1)
    problem = given["x"].contiguous(), labels, center.contiguous(), given["lam"].contiguous()
    weight, _, residual, status = ops.softmax_head(*problem, 1e-13, 50)
    assert not status.any(), residual
    assert HeadProblem(*problem).gradient(weight).abs().amax() < 1e-11


def test_softmax_head_of_float32(ops):
    problem = head(2, 10, 16, 5)
    single = [t.float() if t.is_floating_point() else t for t in problem]
    weight, iterations, residual, status = ops.softmax_head(*single, 1e-7, 50)
    assert weight.dtype == torch.float32
    assert residual.dtype == torch.float64
    assert status.tolist() == [0, 0]
    assert (iterations > 0).all()
    expected = ops.softmax_head(*problem, 1e-13, 50)[0]
    close([weight.double()], [expected], 1e-5)
    grad = torch.randn_like(expected)
    double = ops.softmax_head_grad(grad, expected, *problem)
    close([g.double() for g in ops.softmax_head_grad(grad.float(), weight, *single)], double, 1e-4)


def test_softmax_head_reports_as_the_cpu_does(ops):
    features, labels, center, lam = head(4, 6, 8, 3)
    features[1, 2, 3] = torch.nan
    features[2] *= 100
    call = (features, labels, center, lam, 1e-6, 3)
    actual, expected = ops.softmax_head(*call), torch.ops.metasparse.softmax_head(*call)
    assert actual[1].tolist() == expected[1].tolist()
    assert actual[3].tolist() == expected[3].tolist() == [1, 3, 1, 0]


def test_a_task_without_an_answer_leaves_the_others_alone(ops):
    features, labels, center, lam = head(3, 6, 8, 3)
    expected = ops.softmax_head(features, labels, center, lam, 1e-12, 50)
    labels[0, 4], lam[2] = 3, 0.0
    weight, _, residual, status = ops.softmax_head(features, labels, center, lam, 1e-12, 50)
    assert status.tolist() == [3, 0, 3]
    assert weight[[0, 2]].isnan().all()
    assert residual[[0, 2]].isnan().all()
    assert torch.equal(weight[1], expected[0][1])
    grads = ops.softmax_head_grad(center, weight, features, labels, center, lam)
    assert all(g[[0, 2]].isnan().all() and g[1].isfinite().all() for g in grads)


def test_a_head_beyond_shared_memory_is_refused(ops, monkeypatch):
    problem = head(1, 110, 3, 2)  # 134 KiB
    assert ops.softmax_head_refusal(*problem, 1e-9, 50) == ""
    monkeypatch.setenv("METASPARSE_EMULATED_SHARED", str(99 << 10))
    found = ops.softmax_head_refusal(*problem, 1e-9, 50)
    assert re.fullmatch(r"a block needs \d+ bytes of shared memory, and the GPU has 101376", found)
    with pytest.raises(ValueError, match=r"softmax_head: .* do not take this call: a block needs"):
        ops.softmax_head(*problem, 1e-9, 50)


def test_a_launch_that_fails_leaves_no_error_behind(ops, monkeypatch):
    """The next call that asks the CUDA runtime would report it as its own."""
    scores, k = torch.randn(2, 30), torch.tensor([3, 4])
    monkeypatch.setenv("METASPARSE_EMULATED_SHARED", "16")
    with pytest.raises(RuntimeError, match="topk_mask: the CUDA kernels could not be launched"):
        ops.topk_mask(scores, k)
    assert ops.last_error() == 0
