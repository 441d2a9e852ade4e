"""MetaDOCK against its definition: one task after the other, two passes, an explicit Hessian."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import (
    Opaque,
    Samples,
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

from metasparse_ext.algorithms import IMAML, LEARNERS, MetaDOCK
from metasparse_ext.algorithms.metadock import Budget
from metasparse_ext.nn import Conv4, ScoreMask

STEPS, CG = 3, 5
OPTIONS = {
    "inner_lr": 0.02,
    "inner_steps": STEPS,
    "budget": 0.4,
    "lambda1": 30.0,
    "lambda3": 3.0,
    "lambda4": 1e-2,
    "total_iterations": 10,
    "cg_steps": CG,
}
DONE = 4


def metadock(kind="task-aware", **options):
    """A learner in the middle of its training, its meta scores close to the threshold."""
    learner = MetaDOCK(network(kind), **{**OPTIONS, **options})
    with torch.no_grad():
        for name, p in learner.named_parameters():
            if name.endswith("scores"):
                p.uniform_(-0.002, 0.004)
    learner.iteration.fill_(DONE)
    return learner


def is_score(name):
    return name.endswith("masker.scores")


def masks(parameters, surrogate):
    """1[sigmoid(score) > 0.5] by block; the surrogate has the derivative of the logistic."""
    result = []
    for name, scores in parameters.items():
        if is_score(name):
            gate = scores.sigmoid()
            hard = (gate > 0.5).to(gate.dtype)
            result.append(gate + (hard - gate).detach() if surrogate else hard)
    return result


def cross_entropy(net, parameters, gates, samples):
    return F.cross_entropy(plain_logits(net, parameters, samples.images, gates), samples.labels)


def penalty(learner, parameters):
    """lambda3(t) (V - V0(t))^2 + lambda4 sum |zeta|, through the surrogate."""
    gates = flat(dict(enumerate(masks(parameters, surrogate=True))))
    scores = flat({n: p for n, p in parameters.items() if is_score(n)})
    progress = torch.tensor(DONE / OPTIONS["total_iterations"], dtype=torch.float64)
    goal = OPTIONS["budget"]
    if learner.budget_loss.schedule == "exponential":
        goal = max(goal, torch.exp(-4 * progress))
    budget = OPTIONS["lambda3"] * progress * (gates.mean() - goal) ** 2
    return budget + OPTIONS["lambda4"] * scores.abs().sum()


def two_passes(learner, parameters, samples):
    """Pass A: weights under a frozen mask. Pass B: scores and penalty, weights frozen."""
    net = learner.model
    parameters = {n: p.detach().requires_grad_() for n, p in parameters.items()}
    weights = {n: p for n, p in parameters.items() if not is_score(n)}
    scores = {n: p for n, p in parameters.items() if is_score(n)}
    loss = cross_entropy(net, parameters, masks(parameters, surrogate=False), samples)
    found = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    frozen = {n: p.detach() for n, p in weights.items()} | scores
    total = cross_entropy(net, frozen, masks(scores, surrogate=True), samples)
    total = total + penalty(learner, frozen)
    found |= dict(zip(scores, torch.autograd.grad(total, list(scores.values())), strict=True))
    return {n: found[n] for n in parameters}, loss.detach()


def plain_descent(learner, support, lam):
    theta = phi = leaves(learner.model)
    rate = OPTIONS["inner_lr"]
    for _ in range(STEPS):
        slope, _ = two_passes(learner, phi, support)
        if learner.mode == "paper":
            slope = {n: g + lam(n) * (phi[n] - theta[n]).detach() for n, g in slope.items()}
        phi = {n: p.detach() - rate * slope[n] for n, p in phi.items()}
    if learner.mode == "official":
        phi = {n: p - rate * lam(n) * (p - theta[n]).detach() for n, p in phi.items()}
    return phi


def plain_task_gradient(net, support, query, learner, lam):
    phi = plain_descent(learner, support, lam)
    gradient, loss = two_passes(learner, phi, query)

    def support_loss(vector):
        parameters = named(vector, phi)
        gates = masks(parameters, surrogate=True)
        return cross_entropy(net, parameters, gates, support)

    curvature = hessian(support_loss, flat(phi).detach())
    if learner.lambda2 == learner.lam:
        matrix = implicit_matrix(curvature, learner.mode, learner.lam)
        solution = plain_cg(matrix, flat(gradient), CG)
    else:
        offset, shift = (10, 2) if learner.mode == "official" else (0, 1)
        lams = flat({n: torch.full_like(p, lam(n) + offset) for n, p in phi.items()})
        solution = lams * plain_cg(shift * torch.diag(lams) + curvature, flat(gradient), CG)
    kept = flat(dict(enumerate(masks(phi, surrogate=False))))
    return named(solution, phi), loss, kept


@pytest.mark.parametrize("mode", ["official", "paper"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("task-aware", {}),
        ("vmap", {}),
        ("task-aware", {"lambda2": 20.0}),
        ("task-aware", {"budget_schedule": "exponential"}),
    ],
    ids=["task-aware", "vmap", "lambda2", "exponential"],
)
def test_meta_gradient_is_the_two_pass_definition(mode, kind, options):
    learner, tasks = metadock(kind, mode=mode, **options), batch()
    metrics = learner.meta_backward(tasks)

    def lam(name):
        return learner.lambda2 if is_score(name) else learner.lam

    expected, loss, kept = mean_gradients(plain_task_gradient, learner.model, tasks, learner, lam)
    assert len({tuple(mask.tolist()) for mask in kept}) == 3, "the tasks' masks are not unequal"
    assert_same_gradients(learner.model, expected)
    torch.testing.assert_close(metrics.loss, loss)
    torch.testing.assert_close(metrics.active, kept.mean(1).float())
    assert learner.iteration == DONE + 1


@pytest.mark.parametrize("mode", ["official", "paper"])
@pytest.mark.parametrize("adapt_lam", [None, 0.0])
def test_adaptation_is_the_inner_loop(mode, adapt_lam):
    learner, tasks = metadock(mode=mode, adapt_lam=adapt_lam), batch()
    adapted = learner.adapt(tasks.support)
    for t in range(3):
        own = Samples(tasks.support.images[t], tasks.support.labels[t])
        lam = learner.lam if adapt_lam is None else adapt_lam
        phi = plain_descent(learner, own, lambda _, lam=lam: lam)
        for name, p in phi.items():
            torch.testing.assert_close(adapted.parameters[name][t], p)
        own_masks = [mask[t] for mask in adapted.masks().values()]
        for mask, expected in zip(own_masks, masks(phi, surrogate=False), strict=True):
            assert torch.equal(mask, expected)


@pytest.mark.parametrize("schedule", ["constant", "exponential"])
@pytest.mark.parametrize("done", [0, 5, 20, 50])
def test_budget_gradient_is_that_of_its_loss(schedule, done):
    budget = Budget(0.3, 5.0, 1e-2, 20, schedule)
    scores = (0.1 * torch.randn(3, 40, dtype=torch.float64)).requires_grad_()
    progress = min(done / 20, 1)
    goal = 0.3 if schedule == "constant" else max(0.3, torch.tensor(-4.0 * progress).exp())
    gate = scores.sigmoid()
    share = (gate + ((gate > 0.5).double() - gate).detach()).mean(1)
    loss = 5.0 * progress * (share - goal) ** 2 + 1e-2 * scores.abs().sum(1)
    torch.testing.assert_close(budget.loss(scores, torch.tensor(done)), loss)
    (expected,) = torch.autograd.grad(loss.sum(), scores)
    torch.testing.assert_close(budget.gradient(scores, torch.tensor(done)), expected)


def test_training_meets_the_budget():
    """On tasks with nothing to learn the budget alone decides."""
    learner = MetaDOCK(
        network(), inner_lr=0.01, inner_steps=1, budget=0.5, total_iterations=10, cg_steps=0
    )
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3, eps=1e-3)
    assert learner.meta_active() == 1
    assert not learner.budget_met()
    for step in range(40):
        optimizer.zero_grad()
        metrics = learner.meta_backward(batch(1, seed=step % 3))
        optimizer.step()
    assert learner.budget_met(0.1)
    assert abs(metrics.active.mean() - 0.5) < 0.15


def test_a_dense_network_becomes_a_scored_one():
    net = network()
    IMAML(net)
    weights = {n: p.clone() for n, p in net.named_parameters()}
    learner = LEARNERS["metadock"](net)
    scores = [block.conv.masker.scores for block in net.blocks]
    assert all((s > 0).all() and (s < 0.01).all() and s.dtype == torch.float64 for s in scores)
    assert learner.kernels == 8 + 16
    assert learner.meta_active() == 1
    assert all(torch.equal(net.get_parameter(n), p) for n, p in weights.items())
    again = MetaDOCK(net)
    assert [block.conv.masker.scores for block in again.model.blocks] == scores


def test_a_state_dict_is_the_whole_state():
    source, target = metadock(), MetaDOCK(network(seed=1), **OPTIONS)
    target.load_state_dict(source.state_dict())
    a, b = source.adapt(batch().support), target.adapt(batch().support)
    assert all(torch.equal(p, b.parameters[n]) for n, p in a.parameters.items())


def test_float32_on_the_published_backbone():
    net = Conv4(3, 32, 16, 5)
    learner = MetaDOCK(net, inner_steps=2)
    images = torch.rand(2, 10, 3, 32, 32)
    samples = Samples(images, torch.arange(5).repeat(2, 2))
    metrics = learner.meta_backward(type(batch())(samples, samples))
    assert (metrics.active > 0.9).all()
    assert all(p.grad.isfinite().all() for p in learner.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, r"MetaDOCK: expected budget to be at most 1, got 1.5"),
        ({"lambda1": 0.0}, "MetaDOCK: expected lambda1 to be above 0"),
        ({"lambda2": -1.0}, "MetaDOCK: expected lambda2 to be above 0"),
        ({"lambda3": -1.0}, "MetaDOCK: expected lambda3 to be at least 0"),
        ({"lambda4": -1.0}, "MetaDOCK: expected lambda4 to be at least 0"),
        ({"total_iterations": 0}, "MetaDOCK: expected total_iterations to be at least 1"),
        ({"budget_schedule": "cosine"}, "MetaDOCK: expected budget_schedule to be one of"),
        (
            {"model": nn.Conv2d(2, 3, 3)},
            r"model to be one with MaskedConv2d.* nn\.sparsify\(model\) makes them",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MetaDOCK(**{"model": network(), **options})


@pytest.mark.parametrize("lambda2", [None, 7.0])
def test_weights_frozen_later_leave_the_budget_at_the_scores(lambda2):
    """The budget and the proximal weights lie where the scores are after the freezing."""
    before, later = network(), metadock(lambda2=lambda2)
    before.blocks[1].conv.weight.requires_grad_(False)
    expected = MetaDOCK(before, **OPTIONS, lambda2=lambda2)
    expected.load_state_dict(later.state_dict())
    later.model.blocks[1].conv.weight.requires_grad_(False)
    adapted = expected.adapt(batch().support).parameters
    assert_equal_tensors(later.adapt(batch().support).parameters, adapted)
    later = metadock(lambda2=lambda2)
    later.load_state_dict(expected.state_dict())
    later.model.blocks[1].conv.weight.requires_grad_(False)
    for learner in (expected, later):
        learner.meta_backward(batch())
    gradients = [
        {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
        for learner in (later, expected)
    ]
    assert_equal_tensors(*gradients)


def assert_equal_tensors(ours, expected):
    assert ours.keys() == expected.keys()
    for name in ours:
        assert torch.equal(ours[name], expected[name]), name


def test_frozen_scores_are_refused():
    net = network()
    for block in net.blocks:
        block.conv.masker = ScoreMask.like(block.conv.weight).requires_grad_(False)
    with pytest.raises(
        ValueError,
        match="MetaDOCK: expected model to be one with a ScoreMask whose scores require grad",
    ):
        MetaDOCK(Opaque(net))
