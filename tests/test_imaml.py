"""iMAML against its definition, one task after the other, with an explicit Hessian."""

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
from torch import nn

from metasparse_ext._capture import unobserved
from metasparse_ext.algorithms import FOMAML, IMAML, LEARNERS, MetaDOCK
from metasparse_ext.data import Samples, TaskBatch

STEPS, RATE, LAM, CG = 4, 0.04, 20.0, 5


def plain_descent(net, support, mode, lam):
    theta = phi = flat(leaves(net)).detach()
    like = leaves(net)

    def loss(vector):
        logits = plain_logits(net, named(vector, like), support.images)
        return F.cross_entropy(logits, support.labels)

    for _ in range(STEPS):
        slope = torch.func.grad(loss)(phi)
        if mode == "paper":
            slope = slope + lam * (phi - theta)
        phi = phi - RATE * slope
    if mode == "official":
        phi = phi - RATE * lam * (phi - theta)
    return phi, loss, like


def gauss_newton(net, like, support, phi):
    """J' L'' J, from the Jacobian of the logits and the Hessian of the loss in them."""

    def logits(vector):
        return plain_logits(net, named(vector, like), support.images)

    at, jacobian = logits(phi), torch.func.jacrev(logits)(phi)
    curvature = torch.func.hessian(lambda z: F.cross_entropy(z, support.labels))(at)
    size = at.numel()
    rows = jacobian.reshape(size, -1)
    return rows.T @ curvature.reshape(size, size) @ rows


def plain_task_gradient(net, support, query, mode, steps, curvature="hessian"):
    phi, loss, like = plain_descent(net, support, mode, LAM)

    def query_loss(vector):
        logits = plain_logits(net, named(vector, like), query.images)
        return F.cross_entropy(logits, query.labels)

    exact = curvature == "hessian"
    inner = hessian(loss, phi) if exact else gauss_newton(net, like, support, phi)
    matrix = implicit_matrix(inner, mode, LAM)
    gradient = plain_cg(matrix, torch.func.grad(query_loss)(phi), steps)
    return named(gradient, like), query_loss(phi)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("mode", ["official", "paper"])
@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
def test_meta_gradient_is_the_definition(mode, kind, curvature):
    net, tasks = network(kind), batch()
    learner = IMAML(
        net,
        inner_lr=RATE,
        inner_steps=STEPS,
        mode=mode,
        lam=LAM,
        cg_steps=CG,
        curvature=curvature,
    )
    metrics = learner.meta_backward(tasks)
    expected, loss = mean_gradients(plain_task_gradient, net, tasks, mode, CG, curvature)
    assert_same_gradients(net, expected)
    torch.testing.assert_close(metrics.loss, loss)
    assert learner.iteration == 1


@pytest.mark.parametrize("adapt_lam", [None, 0.0, 1.0])
@pytest.mark.parametrize("mode", ["official", "paper"])
def test_adaptation_is_the_inner_loop(mode, adapt_lam):
    net, tasks = network(), batch()
    learner = LEARNERS["imaml"](
        net, inner_lr=RATE, inner_steps=STEPS, mode=mode, lam=LAM, adapt_lam=adapt_lam
    )
    adapted = learner.adapt(tasks.support)
    for t in range(3):
        support = Samples(tasks.support.images[t], tasks.support.labels[t])
        phi, _, like = plain_descent(net, support, mode, LAM if adapt_lam is None else adapt_lam)
        for name, p in named(phi, like).items():
            torch.testing.assert_close(adapted.parameters[name][t], p)


@pytest.mark.parametrize(("mode", "cg_steps"), [("official", 1), ("official", 0), ("paper", 0)])
def test_without_a_solve_it_is_first_order(mode, cg_steps):
    """With next to no pull towards theta, the gradient is FOMAML's."""
    ours, theirs, tasks = network(), network(), batch()
    IMAML(
        ours, inner_lr=RATE, inner_steps=STEPS, mode=mode, lam=1e-13, cg_steps=cg_steps
    ).meta_backward(tasks)
    FOMAML(theirs, inner_lr=RATE, inner_steps=STEPS).meta_backward(tasks)
    assert_same_gradients(ours, {n: p.grad for n, p in theirs.named_parameters()})


def test_a_task_with_no_curvature_to_trust_falls_back():
    """A = I + H / lambda with a tiny lambda is indefinite: the gradient stays finite."""
    net = network()
    learner = IMAML(net, inner_lr=RATE, inner_steps=1, mode="paper", lam=1e-6)
    learner.meta_backward(batch())
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_damping_adds_to_the_identity():
    net, tasks = network(), batch()
    damping = 1e12
    IMAML(net, inner_lr=RATE, inner_steps=STEPS, lam=LAM, damping=damping).meta_backward(tasks)
    first = network()
    IMAML(first, inner_lr=RATE, inner_steps=STEPS, lam=LAM, cg_steps=0).meta_backward(tasks)
    assert_same_gradients(net, {n: p.grad / (1 + damping) for n, p in first.named_parameters()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "IMAML: expected mode to be one of"),
        ({"lam": 0.0}, "IMAML: expected lam to be above 0"),
        ({"adapt_lam": -1.0}, "IMAML: expected adapt_lam to be at least 0"),
        ({"cg_steps": -1}, "IMAML: expected cg_steps to be at least 0"),
        ({"damping": -1.0}, "IMAML: expected damping to be at least 0"),
        ({"curvature": "fisher"}, "IMAML: expected curvature to be one of"),
    ],
    ids=["mode", "lam", "adapt_lam", "cg_steps", "damping", "curvature"],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        IMAML(network(), **options)


class Kinked(nn.Module):
    """Adds |g|^(3/2) at g = 0, where the gradient is zero and the Hessian is not finite."""

    def __init__(self):
        super().__init__()
        self.net, self.g = network(), nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return self.net(x) + self.g.abs().pow(1.5)


BROKEN_SOLVES = {
    "hessian": (IMAML, Kinked, {}),
    "damping": (IMAML, lambda: network().float(), {"damping": 1e300}),
    "lam": (IMAML, lambda: network().float(), {"mode": "paper", "lam": 1e-42}),
    "metadock": (MetaDOCK, lambda: network().float(), {"damping": 1e300}),
}
broken_solves = pytest.mark.parametrize(
    ("kind", "model", "options"), BROKEN_SOLVES.values(), ids=BROKEN_SOLVES.keys()
)


def broken(kind, model, options):
    learner, tasks = kind(model(), inner_steps=2, **options), batch()
    dtype = next(learner.parameters()).dtype
    support, query = (part._replace(images=part.images.to(dtype)) for part in tasks[:2])
    return learner, TaskBatch(support, query)


@broken_solves
def test_a_solve_that_is_not_finite_is_an_error_not_a_zero_gradient(kind, model, options):
    learner, tasks = broken(kind, model, options)
    message = f"{kind.__name__}: the conjugate-gradient solve of task 0 met a value that is not"
    with pytest.raises(FloatingPointError, match=message):
        learner.meta_backward(tasks)
    assert all(p.grad is None for p in learner.parameters())
    assert learner.iteration == 0


@broken_solves
def test_a_captured_solve_that_is_not_finite_is_noted(kind, model, options):
    learner, tasks = broken(kind, model, options)
    with unobserved():
        learner.meta_backward(tasks)
    assert learner.nonfinite
    assert learner.iteration == 0


def test_a_loss_that_is_not_finite_is_named_before_the_solve():
    learner, tasks = IMAML(network(), inner_steps=2), batch()
    tasks.query.images[1] = torch.nan
    with pytest.raises(FloatingPointError, match="the loss of task 1 is nan on the query set"):
        learner.meta_backward(tasks)
