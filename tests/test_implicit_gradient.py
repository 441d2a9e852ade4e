"""The implicit meta-gradient against explicit matrices and against unrolled adaptation."""

from pathlib import Path

import pytest
import torch
from support.implicit_problems import (
    PROBLEMS,
    dense_ggn,
    dense_hessian,
    exact_solution,
    mask_problem,
)
from torch import nn
from torch.nn import functional as F

from metasparse_ext.implicit import (
    KINDS,
    CGStatus,
    Layout,
    implicit_gradient,
    task_losses,
)

mean_loss = torch.func.vmap(F.cross_entropy)
# Large enough for every kind's matrix to be positive definite on these untrained networks.
LAMS = {"linear": 4.0, "conv": 60.0}
LAM = LAMS["linear"]


def query_gradient(problem):
    point = problem.params.clone().requires_grad_()
    problem.losses(1)(point).sum().backward()
    return point.grad


@pytest.mark.parametrize("network", PROBLEMS)
@pytest.mark.parametrize("masks", ["learned", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_against_a_direct_solve(network, masks, kind, curvature):
    problem, lam = PROBLEMS[network](masks), LAMS[network]
    if curvature == "hessian":
        inner, model = problem.losses(), None
        h = dense_hessian(inner, problem.params)
    else:
        inner, model = (lambda z: mean_loss(z, problem.labels)), problem.outputs()
        h = dense_ggn(model, inner, problem.params)
    result = implicit_gradient(
        inner,
        problem.losses(1),
        problem.params,
        lam=lam,
        kind=kind,
        curvature=curvature,
        model=model,
        iterations=200,
    )
    eye = torch.eye(problem.layout.numel, dtype=torch.float64)
    matrix = {
        "paper": eye + h / lam,
        "imaml_dev": 2 * eye + h / (lam + 10),
        "ridge": eye + h / lam,
    }[kind]
    expected = exact_solution(matrix, query_gradient(problem))
    torch.testing.assert_close(result.gradient, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.query_loss, problem.losses(1)(problem.params).detach())
    torch.testing.assert_close(result.support_loss, problem.losses()(problem.params).detach())
    assert (result.solve.status == CGStatus.CONVERGED).all()


def test_against_an_unroll_of_the_proximal_problem():
    """Gradient descent to the minimum, differentiated step by step, gives the same gradient."""
    problem = mask_problem("frozen")
    theta = problem.params[:1].clone().requires_grad_()
    phi = theta.expand_as(problem.params)
    for _ in range(400):
        objective = problem.losses()(phi).sum() + LAM / 2 * (phi - theta).square().sum()
        (slope,) = torch.autograd.grad(objective, phi, create_graph=True)
        phi = phi - 0.15 * slope
    problem.losses(1)(phi).sum().backward()
    result = implicit_gradient(
        problem.losses(), problem.losses(1), phi.detach(), lam=LAM, iterations=100
    )
    torch.testing.assert_close(result.gradient.sum(0, keepdim=True), theta.grad, rtol=0, atol=1e-8)


def test_no_curvature_at_once_gives_the_first_order_gradient():
    params = torch.randn(2, 3, dtype=torch.float64)

    def concave(p):
        return -10 * p.square().sum(-1)

    def query(p):
        return (p * torch.arange(3)).sum(-1)

    expected = torch.arange(3).double().expand(2, 3)
    for kind in ("paper", "ridge"):
        result = implicit_gradient(concave, query, params, lam=0.5, kind=kind)
        assert result.solve.status.tolist() == [CGStatus.NOT_POSITIVE] * 2
        torch.testing.assert_close(result.gradient, expected)


def test_a_module_that_is_not_ours_in_five_lines():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Softplus(),
        nn.Flatten(), nn.Linear(3 * 4 * 4, 2),
    ).double()  # fmt: skip
    x = torch.randn(2, 4, 5, 2, 6, 6, dtype=torch.float64)
    y = torch.randint(2, (2, 4, 5))

    layout = Layout.of(net)
    support = task_losses(net, layout, x[0], y[0])
    query = task_losses(net, layout, x[1], y[1])
    phi = layout.flatten(dict(net.named_parameters())).detach().expand(4, -1)
    result = implicit_gradient(support, query, phi, lam=5.0, iterations=500, tolerance=1e-12)

    loss = F.cross_entropy(net(x[1, 2]), y[1, 2])
    torch.testing.assert_close(result.query_loss[2], loss.detach())
    b = torch.autograd.grad(loss, net.parameters())
    b = layout.flatten(dict(zip(layout.names, b, strict=True)))
    h = dense_hessian(support, phi)[2]
    expected = exact_solution(torch.eye(layout.numel).double() + h / 5, b)
    torch.testing.assert_close(result.gradient[2], expected, rtol=1e-8, atol=1e-10)


def test_the_documentations_example_runs():
    text = (Path(__file__).parent.parent / "docs" / "implicit.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    images, labels = torch.randn(2, 4, 5, 3, 12, 12), torch.randint(5, (2, 4, 5))
    names = {
        "support_images": images[0],
        "query_images": images[1],
        "support_labels": labels[0],
        "query_labels": labels[1],
    }
    exec(code, names)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in names["net"].parameters())
    assert (names["result"].solve.iterations == 5).all()


def test_query_loss_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"query_loss's result to be of shape \(2,\), got \(\)"):
        implicit_gradient(lambda p: p.sum(-1), lambda p: p.sum(), torch.zeros(2, 3), lam=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": float("inf")}, "expected lam to be finite, got inf"),
        ({"lam": float("nan")}, "expected lam to be finite, got nan"),
        ({"lam": 0.0}, "expected lam to be above 0.0, got 0.0"),
        ({"lam": torch.tensor(-1.0)}, "expected lam to be finite and above 0, got -1"),
        ({"lam": torch.tensor(torch.nan)}, "expected lam to be finite and above 0, got nan"),
        ({"lam": torch.ones(3, 3)}, "expected lam to be of shape"),
        ({"lam": 1.0, "damping": float("inf")}, "expected damping to be finite, got inf"),
        ({"lam": 1.0, "damping": float("nan")}, "expected damping to be finite, got nan"),
    ],
)
def test_an_operator_that_is_not_finite_is_refused(options, message):
    problem = mask_problem("frozen")
    with pytest.raises(ValueError, match=message):
        implicit_gradient(problem.losses(), problem.losses(1), problem.params, **options)
