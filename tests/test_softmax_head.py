"""The exact softmax head: its optimum, its solvers, its implicit gradient."""

import pytest
import torch
from torch.nn import functional as F

from metasparse_ext import _library
from metasparse_ext.implicit import SOLVERS, HeadProblem, HeadStatus, ridge_head, softmax_head
from metasparse_ext.reference import softmax_head as reference

pytestmark = pytest.mark.usefixtures("device")

compiled = pytest.mark.skipif(_library.problem is not None, reason="no compiled library")


def draw(tasks=3, samples=7, size=11, classes=4, dtype=torch.float64, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    features = torch.randn(tasks, samples, size, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (tasks, samples), generator=generator)
    weight = torch.randn(tasks, classes, size, generator=generator, dtype=torch.float64) / 3
    lam = torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.1
    return features.to(dtype), labels, weight.to(dtype), lam.to(dtype)


def residual(features, labels, weight, lam, solution):
    problem = HeadProblem(features, labels, weight.expand_as(solution), lam).double()
    return problem.residual(problem.gradient(solution.detach().double()))


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


SHAPES = {
    "one-sample": (2, 1, 5, 3),
    "two-classes": (1, 9, 33, 2),
    "one-class": (2, 4, 3, 1),
    "five-classes": (3, 25, 64, 5),
    "many-classes": (2, 20, 40, 21),
    "padding": (2, 17, 19, 6),
    "primal": (2, 50, 4, 5),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_exact_is_the_minimum(shape, dtype):
    features, labels, weight, lam = draw(*shape, dtype=dtype)
    solution = softmax_head(features, labels, weight, lam=lam)
    limit = 2e-7 if dtype == torch.float32 else 1e-12
    assert solution.report.status.tolist() == [HeadStatus.CONVERGED] * shape[0]
    assert (residual(features, labels, weight, lam, solution.weight) < limit).all()
    assert solution.weight.dtype == dtype
    assert solution.bias is None


@pytest.mark.parametrize(
    ("size", "scale", "lam"),
    [(64, 1.0, 100.0), (64, 30.0, 1.0), (1600, 30.0, 100.0), (1600, 300.0, 100.0)],
)
@pytest.mark.parametrize("op", ["softmax_head", "reference"])
def test_exact_stops_where_rounding_lets_it_fall_no_further(op, size, scale, lam):
    """Scores of some hundreds are rounded by more than the tolerance asks of their gradient."""
    for seed in range(4):
        features, labels, weight, _ = draw(2, 5, size, 5, seed=seed)
        features, weight = scale * features, weight / size**0.5
        lams = torch.full((2,), lam, dtype=torch.float64)
        solve = reference.softmax_head
        if op == "softmax_head":
            if _library.problem is not None:
                pytest.skip("no compiled library")
            solve = torch.ops.metasparse.softmax_head
        found, iterations, residuals, status = solve(features, labels, weight, lams, 1e-13, 50)
        assert status.tolist() == [HeadStatus.CONVERGED] * 2, residuals
        assert (iterations < 50).all()
        slope = residual(features, labels, weight, lams, found)
        assert (slope < 2e-12 * scale).all()


@pytest.mark.parametrize("lam", [1e-1, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("size", [9, 400])
def test_the_gradient_in_float32_is_as_near_as_documented(size, lam):
    features, labels, weight, _ = draw(2, 10, size, 3)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        x = features.to(dtype).requires_grad_()
        fit = softmax_head(x, labels, weight.to(dtype), lam=lam)
        gradients.append(torch.autograd.grad(fit.weight.sin().sum(), x)[0].double())
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < 1e-5 + 1e-10 * size / lam


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_an_enormous_lambda_keeps_the_center(solver, dtype):
    features, labels, weight, _ = draw(dtype=dtype)
    lam = 1e30 if dtype == torch.float32 else 1e300
    fit = softmax_head(features, labels, weight, lam=lam, solver=solver)
    assert fit.report.status.tolist() == [HeadStatus.CONVERGED] * 3
    assert torch.equal(fit.weight, weight)


def test_features_too_large_to_solve_for_leave_finite_weights():
    features = 1e15 * torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1]).repeat(20, 1)
    fit = softmax_head(features, labels, torch.zeros(3, 3), lam=1.0)
    assert fit.weight.isfinite().all()
    assert set(fit.report.status.tolist()) == {HeadStatus.CONVERGED, HeadStatus.ITERATIONS}


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("lam", [1e300, torch.inf, torch.nan, 0.0, -1.0])
def test_every_solver_refuses_a_lambda_that_is_none(solver, lam):
    features, labels, weight, _ = draw(dtype=torch.float32)
    given = [lam, torch.tensor(lam), torch.tensor([1.0, lam, 1.0])]
    for value in given:
        with pytest.raises(ValueError, match=r"softmax_head: expected lam to be .*, got"):
            softmax_head(features, labels, weight, lam=value, solver=solver)


@pytest.mark.parametrize("lam", [1e-4, 1e-2, 1.0, 100.0])
def test_exact_over_a_range_of_lambda(lam):
    features, labels, weight, _ = draw(size=30)
    solution = softmax_head(30 * features, labels, weight, lam=lam)
    assert solution.report.status.tolist() == [HeadStatus.CONVERGED] * 3
    assert (solution.report.iterations < 25).all()
    wide = torch.full((3,), lam, dtype=torch.float64)
    assert (residual(30 * features, labels, weight, wide, solution.weight) < 1e-11).all()


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("biased", [False, True], ids=["weight", "weight-and-bias"])
def test_every_solver_finds_the_same_head(solver, biased):
    features, labels, weight, lam = draw()
    bias = torch.randn(4, dtype=torch.float64) if biased else None
    expected = softmax_head(features, labels, weight[0], bias, lam=lam)
    actual = softmax_head(features, labels, weight[0], bias, lam=lam, solver=solver)
    assert actual.report.status.tolist() == [HeadStatus.CONVERGED] * 3
    close(actual.weight, expected.weight, 1e-8)
    probe = torch.randn(3, 2, 11, dtype=torch.float64)
    logits = probe @ expected.weight.mT + (expected.bias[:, None] if biased else 0)
    close(actual(probe), logits, 1e-7)


def test_the_bias_is_the_weight_of_a_constant_feature():
    features, labels, weight, lam = draw()
    bias = torch.randn(3, 4, dtype=torch.float64)
    solution = softmax_head(features, labels, weight, bias, lam=lam)
    scores = lambda w, b: features @ w.mT + b[:, None]  # noqa: E731
    w, b = (t.detach().clone().requires_grad_() for t in (solution.weight, solution.bias))
    loss = F.cross_entropy(scores(w, b).mT, labels, reduction="none").mean(-1)
    pull = (w - weight).square().sum((1, 2)) + (b - bias).square().sum(1)
    gradients = torch.autograd.grad((loss + lam / 2 * pull).sum(), (w, b))
    for gradient in gradients:
        close(gradient, torch.zeros_like(gradient), 1e-12)


def test_without_features_the_bias_alone_is_fitted():
    """To the classes' shares, which ridge regression shrinks."""
    labels = torch.tensor([[0, 0, 1, 2], [2, 2, 2, 1]])
    features = torch.zeros(2, 4, 0, dtype=torch.float64)
    weight, bias = (torch.zeros(*shape, dtype=torch.float64) for shape in ((3, 0), (3,)))
    shares = F.one_hot(labels, 3).double().mean(1)
    fitted = softmax_head(features, labels, weight, bias, lam=1e-9)
    close(fitted(features)[:, 0].softmax(-1), shares, 1e-6)
    found, offset = ridge_head(features, labels, 3, lam=0.25)
    close(offset, shares / 1.25)
    assert found.shape == fitted.weight.shape == (2, 3, 0)


def test_closed_form_curvature():
    features, labels, weight, lam = draw(2, 5, 3, 4)
    problem = HeadProblem(features, labels, weight, lam)
    point = torch.randn_like(weight)
    dense = torch.autograd.functional.hessian(lambda w: problem.value(w).sum(), point)
    v = torch.randn_like(weight)
    close(problem.curvature(point)(v), torch.einsum("tcdukm,ukm->tcd", dense, v), 1e-13)
    slope = torch.autograd.functional.jacobian(lambda w: problem.value(w).sum(), point)
    close(problem.gradient(point), slope, 1e-13)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_op_is_its_reference(shape):
    features, labels, weight, lam = draw(*shape)
    actual = torch.ops.metasparse.softmax_head(features, labels, weight, lam, 1e-13, 50)
    expected = reference.softmax_head(features, labels, weight, lam, 1e-13, 50)
    close(actual[0], expected[0])
    assert torch.equal(actual[3], expected[3])
    grad = torch.randn_like(weight)
    arguments = (grad, actual[0], features, labels, weight, lam)
    for a, e in zip(
        torch.ops.metasparse.softmax_head_grad(*arguments),
        reference.softmax_head_grad(*arguments),
        strict=True,
    ):
        close(a, e)


@pytest.mark.parametrize("solver", ["exact", "newton"])
@pytest.mark.parametrize("shared", [False, True], ids=["per-task", "shared"])
def test_gradients_of_everything(solver, shared):
    features, labels, weight, lam = draw(2, 4, 3, 3)
    bias = torch.randn(2, 3, dtype=torch.float64)
    if shared:
        weight, bias, lam = weight[0], bias[0], lam[0]

    def fit(features, weight, bias, lam):
        return softmax_head(features, labels, weight, bias, lam=lam, solver=solver)[:2]

    arguments = tuple(t.requires_grad_() for t in (features, weight, bias, lam))
    assert torch.autograd.gradcheck(fit, arguments, eps=1e-5, atol=1e-7)


def test_primal_side_has_the_same_gradients():
    features, labels, weight, lam = draw(2, 13, 2, 3)
    arguments = tuple(t.requires_grad_() for t in (features, weight, lam))
    fit = lambda x, w, lam: softmax_head(x, labels, w, lam=lam).weight  # noqa: E731
    assert torch.autograd.gradcheck(fit, arguments, eps=1e-5, atol=1e-7)


def test_gradient_is_that_of_a_long_unroll():
    """400 steps of gradient descent, differentiated step by step."""
    features, labels, weight, lam = draw(3, 6, 8, 4)
    lam = lam + 0.4
    query = torch.randn(3, 5, 8, dtype=torch.float64)
    answers = torch.randint(4, (3, 5))

    def outer(head, features):
        # The query's features move with the support's, as they do behind one backbone.
        scores = (query * features.mean(1, keepdim=True).exp()) @ head.mT
        return F.cross_entropy(scores.mT, answers, reduction="none").mean(-1).sum()

    inputs = tuple(t.requires_grad_() for t in (features, weight, lam))
    head = weight
    for _ in range(400):
        problem = HeadProblem(features, labels, weight, lam)
        (slope,) = torch.autograd.grad(problem.value(head).sum(), head, create_graph=True)
        head = head - 0.3 * slope
    expected = torch.autograd.grad(outer(head, features), inputs)
    exact = softmax_head(features, labels, weight, lam=lam).weight
    close(exact, head, 1e-10)
    for a, e in zip(torch.autograd.grad(outer(exact, features), inputs), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-8)


def test_nan_in_one_task():
    features, labels, weight, lam = draw()
    clean = softmax_head(features, labels, weight, lam=lam).weight
    features[1, 2, 3] = float("nan")
    for solver in SOLVERS:
        inputs = features.clone().requires_grad_()
        solution = softmax_head(inputs, labels, weight, lam=lam, solver=solver)
        statuses = [HeadStatus(s) for s in solution.report.status.tolist()]
        assert statuses[1] is HeadStatus.NOT_FINITE
        assert statuses[0] is statuses[2] is HeadStatus.CONVERGED
        close(solution.weight[[0, 2]], clean[[0, 2]], 1e-8)
        solution.weight.square().sum().backward()
        assert inputs.grad[[0, 2]].isfinite().all()
        assert inputs.grad[1].isnan().any()


def test_report():
    features, labels, weight, lam = draw()
    for solver in SOLVERS:
        start = softmax_head(features, labels, weight, lam=lam, solver=solver, max_iterations=0)
        assert torch.equal(start.weight, weight)
        assert start.report.status.tolist() == [HeadStatus.ITERATIONS] * 3
        assert start.report.iterations.tolist() == [0] * 3
        close(start.report.residual, residual(features, labels, weight, lam, weight))
        rough = softmax_head(features, labels, weight, lam=lam, solver=solver, tolerance=1e-2)
        assert (rough.report.residual <= 1e-2).all()
        assert rough.report.status.tolist() == [HeadStatus.CONVERGED] * 3
        close(rough.report.residual, residual(features, labels, weight, lam, rough.weight))
        optimum = softmax_head(features, labels, weight, lam=1e9, solver=solver, tolerance=1e-3)
        assert (optimum.report.iterations <= 5).all()


def test_zero_features_need_no_step():
    features, labels, weight, lam = draw()
    solution = softmax_head(torch.zeros_like(features), labels, weight, lam=lam)
    assert torch.equal(solution.weight, weight)
    assert solution.report.status.tolist() == [HeadStatus.CONVERGED] * 3


def test_strided_and_expanded_inputs():
    features, labels, weight, lam = draw(3, 14, 22, 4)
    sliced = softmax_head(features[:, ::2, ::2], labels[:, ::2], weight[:, :, ::2], lam=lam)
    copied = softmax_head(
        features[:, ::2, ::2].clone(), labels[:, ::2].clone(), weight[:, :, ::2].clone(), lam=lam
    )
    close(sliced.weight, copied.weight, 1e-13)
    one = softmax_head(features[:1], labels[:1], weight[0], lam=0.5).weight
    spread = softmax_head(
        features[:1].expand(3, -1, -1), labels[:1].expand(3, -1), weight[0], lam=0.5
    ).weight
    close(spread, one.expand(3, -1, -1), 1e-13)


def test_autocast_computes_in_the_heads_dtype():
    features, labels, weight, lam = draw(dtype=torch.float32)
    half = features.bfloat16()
    with torch.autocast(features.device.type, torch.bfloat16):
        solution = softmax_head(half, labels, weight, lam=lam)
    assert solution.weight.dtype == torch.float32
    close(solution.weight, softmax_head(half.float(), labels, weight, lam=lam).weight, 1e-6)


@compiled
def test_torch_func():
    features, labels, weight, _ = draw(4, 5, 6, 3)

    def loss(features, labels, weight):
        return softmax_head(features, labels, weight, lam=0.5).weight.square().sum()

    expected = torch.func.grad(loss, argnums=(0, 2))(features, labels, weight)
    x, w = features.clone().requires_grad_(), weight.clone().requires_grad_()
    for a, e in zip(
        torch.autograd.grad(loss(x, labels, w), (x, w)), expected, strict=True
    ):  # fmt: skip
        close(a, e)
    pairs = (
        features.unflatten(0, (2, 2)),
        labels.unflatten(0, (2, 2)),
        weight.unflatten(0, (2, 2)),
    )
    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 2)))(*pairs)
    for a, e in zip(mapped, expected, strict=True):
        close(a.flatten(0, 1), e)


@compiled
def test_opcheck():
    features, labels, weight, lam = draw(2, 3, 4, 3)
    ops = torch.ops.metasparse
    torch.library.opcheck(ops.softmax_head, (features, labels, weight, lam, 1e-12, 20))
    torch.library.opcheck(
        ops.softmax_head_grad, (weight + 1, weight, features, labels, weight, lam)
    )


@pytest.mark.parametrize("backend", [pytest.param("compiled", marks=compiled), "reference"])
def test_second_derivatives(backend, monkeypatch):
    if backend == "reference":
        monkeypatch.setattr(_library, "loaded", lambda: False)
    features, labels, weight, lam = draw(1, 3, 2, 2)

    def fit(features, weight, lam):
        return softmax_head(features, labels, weight, lam=lam, tolerance=1e-14).weight

    inputs = tuple(t.requires_grad_() for t in (features, weight, lam))
    assert torch.autograd.gradcheck(fit, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(fit, inputs, check_fwd_over_rev=True)


def test_second_derivatives_under_torch_func():
    features, labels, weight, lam = draw(2, 3, 2, 2)

    def loss(features):
        return softmax_head(features, labels, weight, lam=lam).weight.sin().sum()

    func = torch.func
    expected = func.jacrev(func.jacrev(loss))(features)
    close(func.hessian(loss)(features), expected)
    close(func.jacrev(func.jacfwd(loss))(features), expected)
    with pytest.raises(NotImplementedError, match="forward mode at most once"):
        func.jacfwd(func.jacfwd(loss))(features)


@pytest.mark.parametrize("solver", SOLVERS)
def test_vmap_over_every_solver(solver):
    features, labels, weight, lam = draw(2, 3, 4, 3)
    stack = torch.stack([features, 2 * features])

    def fit(features):
        return softmax_head(features, labels, weight, lam=lam, solver=solver).weight

    close(torch.func.vmap(fit)(stack), torch.stack([fit(one) for one in stack]), 1e-9)


@pytest.mark.host
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(3, 7)}, ValueError, r"features to be of shape \(T, N, D\)"),
        ({"features": torch.zeros(3, 7, 11).half()}, TypeError, "float32 or float64"),
        ({"labels": torch.zeros(3, 7)}, TypeError, "labels to be of int64"),
        ({"labels": torch.zeros(2, 7).long()}, ValueError, r"labels to be of shape \(3, 7\)"),
        ({"labels": torch.full((3, 7), 4)}, ValueError, r"labels in \[0, 4\), got 4"),
        ({"labels": torch.full((3, 7), -1)}, ValueError, r"labels in \[0, 4\), got -1"),
        ({"weight": torch.zeros(4, 9).double()}, ValueError, r"weight to be of shape \(C, 11\)"),
        ({"weight": torch.zeros(2, 4, 11).double()}, ValueError, r"got \(2, 4, 11\)"),
        ({"weight": torch.zeros(4, 11)}, TypeError, "weight to be of float64 like features"),
        ({"bias": torch.zeros(3).double()}, ValueError, r"bias to be of shape \(4,\)"),
        ({"lam": 0.0}, ValueError, "lam to be above 0.0, got 0.0"),
        ({"lam": torch.tensor(-1.0)}, ValueError, "lam to be finite and above 0, got -1"),
        ({"lam": torch.ones(2)}, ValueError, r"lam to be of shape \(\) or \(3,\), got \(2,\)"),
        ({"solver": "sgd"}, ValueError, "solver to be one of .*, got 'sgd'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, error, message):
    features, labels, weight, lam = draw()
    arguments = {"features": features, "labels": labels, "weight": weight, "lam": lam} | change
    with pytest.raises(error, match=message):
        softmax_head(**arguments)
