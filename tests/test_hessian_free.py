"""The Hessian-free inner solver against one task after the other, with an explicit Hessian."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import (
    assert_same_gradients,
    batch,
    flat,
    hessian,
    implicit_matrix,
    leaves,
    mean_gradients,
    named,
    network,
    plain_cg,
    plain_logits,
)

from metasparse_ext._capture import unobserved
from metasparse_ext.algorithms import IMAML
from metasparse_ext.data import Samples
from metasparse_ext.implicit import hessian_free

LAM = 20.0


def problem(scales, seed=0):
    """Losses sum_i log(1 + (B phi - c)_i^2) of tasks: not convex, and flat far from the minimum."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(scales), 6, 4, generator=draw, dtype=torch.float64)
    rows = rows * torch.tensor(scales, dtype=torch.float64)[:, None, None]
    offsets = torch.randn(len(scales), 6, generator=draw, dtype=torch.float64)
    start = torch.randn(len(scales), 4, generator=draw, dtype=torch.float64)

    def of(task):
        return lambda phi: ((rows[task] @ phi - offsets[task]) ** 2).log1p().sum()

    def losses(phi):
        return ((rows @ phi[..., None])[..., 0] - offsets).square().log1p().sum(1)

    return losses, of, start


def plain_direction(matrix, slope, iterations, lam):
    """Conjugate gradients that stop at the first direction without positive curvature."""
    x, r, p = torch.zeros_like(slope), -slope, -slope
    for k in range(iterations):
        q = matrix @ p
        if p @ q <= 0:
            return -slope / lam if k == 0 else x
        alpha = r @ r / (p @ q)
        x, new = x + alpha * p, r - alpha * q
        p, r = new + new @ new / (r @ r) * p, new
    return x


def plain_solve(loss, theta, lam, steps, iterations):
    """One task: the end, and the length of every step."""
    phi, rates = theta, []
    for _ in range(steps):

        def value(at):
            return loss(at) + lam / 2 * ((at - theta) ** 2).sum()

        slope = torch.func.grad(value)(phi)
        d = plain_direction(hessian(value, phi), slope, iterations, lam)
        lengths = [2.0**-k for k in range(21)]
        limit = value(phi) * (1 + 4 * torch.finfo(phi.dtype).eps)
        good = [t for t in lengths if value(phi + t * d) <= limit + 1e-4 * t * (slope @ d)]
        rates.append(good[0] if good else 0.0)
        phi = phi + rates[-1] * d
    return phi, rates


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("lam", [0.05, 1.0, 30.0])
def test_tasks_are_solved_as_if_each_were_alone(lam, iterations):
    losses, of, start = problem([0.3, 1.0, 3.0, 10.0])
    found = hessian_free(losses, start, lam=lam, steps=4, iterations=iterations)
    lengths = set()
    for t in range(4):
        phi, rates = plain_solve(of(t), start[t], lam, 4, iterations)
        torch.testing.assert_close(found.params[t], phi)
        assert found.rates[:, t].tolist() == rates
        lengths |= set(rates)
        torch.testing.assert_close(found.losses[0, t], of(t)(start[t]))
    if lam < 1:
        assert len(lengths) > 1, "a problem on which no step had to be halved shows little"


def test_it_never_goes_up_and_ends_in_a_minimum():
    losses, _, start = problem([0.3, 1.0, 3.0], seed=1)

    def regularized(phi):
        return losses(phi) + 0.05 * (phi - start).square().sum(1)

    values = [
        regularized(hessian_free(losses, start, lam=0.1, steps=steps).params)
        for steps in (0, 1, 2, 4, 30)
    ]
    assert values[0].equal(losses(start))
    for before, after in pairwise(values):
        assert (after <= before + 1e-12).all()
    end = hessian_free(losses, start, lam=0.1, steps=30).params
    slope = torch.func.grad(lambda phi: regularized(phi).sum())(end)
    assert slope.abs().max() < 1e-6


def test_on_a_quadratic_one_step_is_the_solution():
    draw = torch.Generator().manual_seed(2)
    half = torch.randn(3, 4, 4, generator=draw, dtype=torch.float64)
    matrix = half @ half.mT
    start = torch.randn(3, 4, generator=draw, dtype=torch.float64)

    def losses(phi):
        return (phi[:, None] @ matrix @ phi[..., None]).flatten() / 2

    strengths = torch.tensor([[0.5], [1.0], [4.0]], dtype=torch.float64)
    found = hessian_free(losses, start, lam=strengths, iterations=20)
    eye = torch.eye(4, dtype=torch.float64)
    system = matrix + strengths[..., None] * eye
    exact = torch.linalg.solve(system, strengths * start)
    torch.testing.assert_close(found.params, exact)
    assert found.rates.eq(1).all()


def test_a_capture_takes_the_same_steps():
    losses, _, start = problem([0.3, 3.0])
    seen = hessian_free(losses, start, lam=0.05, steps=3)
    with unobserved():
        unseen = hessian_free(losses, start, lam=0.05, steps=3)
    assert seen.params.equal(unseen.params)


def plain_task_gradient(net, support, query, steps, iterations, cg_steps):
    like, theta = leaves(net), flat(leaves(net)).detach()

    def loss_on(part):
        def loss(vector):
            return F.cross_entropy(plain_logits(net, named(vector, like), part.images), part.labels)

        return loss

    phi, _ = plain_solve(loss_on(support), theta, LAM, steps, iterations)
    matrix = implicit_matrix(hessian(loss_on(support), phi), "paper", LAM)
    gradient = plain_cg(matrix, torch.func.grad(loss_on(query))(phi), cg_steps)
    return named(gradient, like), loss_on(query)(phi)


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
def test_the_learner_is_its_definition(kind):
    net, tasks = network(kind), batch()
    learner = IMAML(
        net,
        inner_steps=2,
        mode="paper",
        lam=LAM,
        cg_steps=4,
        inner="hessian_free",
        inner_cg_steps=3,
    )
    metrics = learner.meta_backward(tasks)
    expected, loss = mean_gradients(plain_task_gradient, net, tasks, 2, 3, 4)
    assert_same_gradients(net, expected)
    torch.testing.assert_close(metrics.loss, loss)
    adapted = learner.adapt(tasks.support)
    like, theta = leaves(net), flat(leaves(net)).detach()
    for t in range(3):
        support = Samples(tasks.support.images[t], tasks.support.labels[t])

        def loss(vector, support=support):
            logits = plain_logits(net, named(vector, like), support.images)
            return F.cross_entropy(logits, support.labels)

        phi, _ = plain_solve(loss, theta, LAM, 2, 3)
        for name, p in named(phi, like).items():
            torch.testing.assert_close(adapted.parameters[name][t], p)


def test_gauss_newton_steps_go_down_too():
    net, tasks = network(), batch()
    options = {"mode": "paper", "lam": 0.5, "inner": "hessian_free", "curvature": "ggn"}
    losses = [
        IMAML(net, inner_steps=steps, **options).meta_backward(tasks).support_loss.mean()
        for steps in (1, 2, 4)
    ]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "hessian_free"}, "IMAML: expected inner to be 'gradient' in mode 'official'"),
        ({"inner": "newton"}, "IMAML: expected inner to be one of 'gradient', 'hessian_free'"),
        ({"inner_cg_steps": 0}, "IMAML: expected inner_cg_steps to be at least 1, got 0"),
        (
            {"inner": "hessian_free", "mode": "paper", "adapt_lam": 0.0},
            "IMAML: expected adapt_lam to be above 0",
        ),
    ],
    ids=["mode", "name", "cg", "adapt_lam"],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        IMAML(network(), **options)
