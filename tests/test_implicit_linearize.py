"""Curvature products and named operators against explicit matrices."""

import pytest
import torch
from support.implicit_problems import PROBLEMS, dense_ggn, dense_hessian, mask_problem
from torch.nn import functional as F

from metasparse_ext.implicit import KINDS, damped, linearize

mean_loss = torch.func.vmap(F.cross_entropy)


def linearized(problem, curvature):
    if curvature == "hessian":
        return linearize(problem.losses(), problem.params)
    return linearize(
        lambda z: mean_loss(z, problem.labels),
        problem.params,
        model=problem.outputs(),
        curvature="ggn",
    )


def dense(problem, curvature):
    if curvature == "hessian":
        return dense_hessian(problem.losses(), problem.params)
    return dense_ggn(problem.outputs(), lambda z: mean_loss(z, problem.labels), problem.params)


@pytest.mark.parametrize("network", PROBLEMS)
@pytest.mark.parametrize("masks", ["learned", "frozen"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_products_are_those_of_the_explicit_matrix(network, masks, curvature):
    problem = PROBLEMS[network](masks)
    at = linearized(problem, curvature)
    matrix = dense(problem, curvature)
    for _ in range(3):
        v = torch.randn_like(problem.params)
        expected = (matrix @ v[..., None])[..., 0]
        # A bias in front of a batch norm has no effect: its entries are rounding of the others.
        size = float(expected.abs().max())
        torch.testing.assert_close(at.hvp(v), expected, rtol=1e-10, atol=1e-12 * size)


@pytest.mark.parametrize("masks", ["learned", "frozen"])
def test_loss_and_gradient_are_each_tasks_own(masks):
    problem = mask_problem(masks)
    at = linearized(problem, "hessian")
    also = linearized(problem, "ggn")
    for t in range(problem.params.shape[0]):
        point = problem.params.clone().requires_grad_()
        loss = problem.losses()(point)[t]
        loss.backward()
        torch.testing.assert_close(at.loss[t], loss.detach())
        for result in (at, also):
            torch.testing.assert_close(result.gradient[t], point.grad[t], rtol=1e-12, atol=1e-14)
    assert not at.gradient.requires_grad
    assert not at.loss.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("damping", [None, 0.3])
@pytest.mark.parametrize("per_task", [False, True], ids=["number", "per-task"])
def test_named_operators(kind, curvature, damping, per_task):
    problem = mask_problem("learned")
    lam = torch.tensor([[0.5], [1.0], [3.0]]).double() if per_task else 0.7
    operator = damped(linearized(problem, curvature).hvp, kind, lam=lam, damping=damping)
    eye = torch.eye(problem.layout.numel, dtype=torch.float64)
    h = dense(problem, curvature)
    d = {"paper": 0.0, "imaml_dev": 1.0, "ridge": 0.0}[kind] if damping is None else damping
    value = lam[..., None] if per_task else lam
    expected = {
        "paper": (1 + d) * eye + h / value,
        "imaml_dev": (1 + d) * eye + h / (value + 10),
        "ridge": h + (value + d) * eye,
    }[kind]
    v = torch.randn_like(problem.params)
    torch.testing.assert_close(
        operator(v), (expected @ v[..., None])[..., 0], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_per_parameter(kind):
    """gain A^-1 b, held to the transposed (I + H / lambda)^-1 b that it stands for."""
    problem = mask_problem("frozen")
    lam = torch.rand(problem.layout.numel, dtype=torch.float64) + 0.1
    operator = damped(linearized(problem, "hessian").hvp, kind, lam=lam, damping=0.3)
    b = torch.randn_like(problem.params)
    solution = torch.linalg.solve(dense_operator(operator, b), b)
    strength = lam + 10 if kind == "imaml_dev" else lam
    curvature = dense(problem, "hessian") / strength[:, None]
    shift = 1 + 0.3 / lam if kind == "ridge" else torch.full_like(lam, 1.3)
    expected = torch.linalg.solve((shift.diag() + curvature).mT, b)
    torch.testing.assert_close(operator.gain * solution, expected, rtol=1e-8, atol=1e-10)


def dense_operator(operator, like):
    """The matrices (T, P, P) of an operator, column by column."""
    columns = torch.eye(like.shape[-1], dtype=like.dtype)
    return torch.stack([operator(e.expand_as(like)) for e in columns], -1)


def test_products_record_nothing_and_build_no_graph():
    problem = mask_problem("learned")
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks:
        at = linearized(problem, "hessian")
        built = len(saved)
        results = [at.hvp(torch.randn_like(problem.params)) for _ in range(4)]
    assert built > 0
    assert len(saved) == built
    assert not any(result.requires_grad for result in results)


def test_point_keeps_no_graph_of_how_it_was_reached():
    problem = mask_problem("frozen")
    reached = problem.params.requires_grad_() * 1
    at = linearize(problem.losses(), reached)
    at.hvp(torch.ones_like(reached))
    assert problem.params.grad is None
    with torch.no_grad():
        again = linearize(problem.losses(), reached)
    torch.testing.assert_close(again.gradient, at.gradient)


def test_flat_losses_have_zero_curvature():
    flat = linearize(lambda p: p.sum(-1), torch.randn(2, 3))
    assert torch.equal(flat.gradient, torch.ones(2, 3))
    assert torch.equal(flat.hvp(torch.ones(2, 3)), torch.zeros(2, 3))
    constant = linearize(lambda p: torch.ones(2), torch.randn(2, 3))
    assert torch.equal(constant.gradient, torch.zeros(2, 3))


def test_bad_input():
    p = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="params to be of a floating dtype, got int64"):
        linearize(lambda p: p.sum(-1), p.long())
    with pytest.raises(ValueError, match=r"shape \(T, P\), got \(3,\)"):
        linearize(lambda p: p.sum(-1), p[0])
    with pytest.raises(ValueError, match=r"loss's result to be of shape \(2,\), got \(\)"):
        linearize(lambda p: p.sum(), p)
    with pytest.raises(ValueError, match="'hessian', 'ggn', got 'fisher'"):
        linearize(lambda p: p.sum(-1), p, curvature="fisher")
    with pytest.raises(TypeError, match="expected model"):
        linearize(lambda p: p.sum(-1), p, curvature="ggn")
    with pytest.raises(ValueError, match=r"direction to be of shape \(2, 3\), got \(3,\)"):
        linearize(lambda p: p.square().sum(-1), p).hvp(p[0])
    with pytest.raises(ValueError, match=r"kind to be one of .* got 'pap'"):
        damped(torch.clone, "pap", lam=1.0)
    with pytest.raises(ValueError, match=r"lam to be above 0\.0, got 0"):
        damped(torch.clone, lam=0)
    with pytest.raises(ValueError, match=r"damping to be at least 0\.0, got -1"):
        damped(torch.clone, lam=1.0, damping=-1)
