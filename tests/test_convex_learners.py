"""Convex MAML and Convex iMAML against their definitions, one task after the other."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import (
    assert_same_gradients,
    batch,
    leaves,
    mean_gradients,
    network,
    plain_logits,
)
from torch import nn
from torch.nn.utils import prune

from metasparse_ext.algorithms import ANIL, LEARNERS, ConvexIMAML, ConvexMAML, ProtoNet
from metasparse_ext.implicit import SOLVERS

STEPS, RATE, LAM = 3, 0.3, 0.5
HEAD = ("head.weight", "head.bias", "net.head.weight", "net.head.bias")


def unrolled_gradient(net, support, query, steps, rate, lam):
    """Gradient descent on the head of one task, unrolled and differentiated by autograd."""
    theta = leaves(net)
    names = [name for name in theta if name in HEAD]
    phi = dict(theta)
    # The backbone does not move, so its features serve all steps.
    for _ in range(steps):
        loss = F.cross_entropy(plain_logits(net, phi, support.images), support.labels)
        loss = loss + lam / 2 * sum((phi[n] - theta[n]).square().sum() for n in names)
        grads = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=True)
        phi |= {n: phi[n] - rate * g for n, g in zip(names, grads, strict=True)}
    logits = plain_logits(net, phi, query.images)
    loss = F.cross_entropy(logits, query.labels)
    accuracy = (logits.argmax(-1) == query.labels).double().mean()
    gradient = torch.autograd.grad(loss, list(theta.values()))
    return dict(zip(theta, gradient, strict=True)), loss.detach(), accuracy


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
def test_convex_maml_is_the_unrolled_one(kind):
    net, tasks = network(kind), batch(tasks=3)
    metrics = ANIL(net, inner_lr=RATE, inner_steps=STEPS).meta_backward(tasks)
    expected, loss, accuracy = mean_gradients(unrolled_gradient, net, tasks, STEPS, RATE, 0.0)
    assert_same_gradients(net, expected)
    torch.testing.assert_close(metrics.loss, loss)
    torch.testing.assert_close(metrics.accuracy, accuracy)
    assert (metrics.active == 1).all()


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
def test_convex_imaml_is_a_400_step_unroll(kind):
    """The whole meta-gradient, the backbone's cross term included."""
    net, tasks = network(kind), batch(tasks=2)
    metrics = ConvexIMAML(net, lam=LAM).meta_backward(tasks)
    expected, loss, accuracy = mean_gradients(unrolled_gradient, net, tasks, 400, RATE, LAM)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-8)
    torch.testing.assert_close(metrics.loss, loss)
    torch.testing.assert_close(metrics.accuracy, accuracy)


def test_the_cross_term_is_no_small_part():
    """Without it the backbone's gradient would be another one: the test above can fail."""
    net, tasks = network(), batch(tasks=2)
    ConvexIMAML(net, lam=LAM).meta_backward(tasks)
    whole = net.blocks[0].conv.weight.grad.clone()
    learner = ConvexIMAML(net, lam=LAM)
    adapted = learner.adapt(tasks.support)
    logits = adapted(tasks.query.images)
    direct = F.cross_entropy(logits.flatten(0, 1), tasks.query.labels.flatten())
    (direct,) = torch.autograd.grad(direct, net.blocks[0].conv.weight)
    assert (whole - direct).norm() > 0.1 * whole.norm()


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_gives_the_same_meta_gradient(solver):
    net, tasks = network(), batch()
    ConvexIMAML(net, lam=LAM).meta_backward(tasks)
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    ConvexIMAML(net, lam=LAM, solver=solver).meta_backward(tasks)
    for parameter, e in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, e, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("learner", ["convex-maml", "convex-imaml"])
def test_adapted_tasks_share_the_backbone(learner):
    net, tasks = network(), batch(tasks=3)
    learner = LEARNERS[learner](net)
    adapted = learner.adapt(tasks.support)
    assert set(adapted.parameters) == {"head.weight", "head.bias"}
    assert adapted.tasks == 3
    metrics = learner.meta_backward(tasks)
    logits = adapted(tasks.query.images)
    loss = F.cross_entropy(logits.mT, tasks.query.labels, reduction="none").mean(-1)
    torch.testing.assert_close(loss.detach(), metrics.loss)
    assert int(learner.iteration) == 1
    assert not logits.isnan().any()


@pytest.mark.parametrize("learner", ["convex-maml", "convex-imaml"])
def test_gradients_accumulate_and_frozen_parameters_stay(learner):
    net, tasks = network(), batch()
    net.blocks[0].conv.weight.requires_grad_(False)
    learner = LEARNERS[learner](net)
    learner.meta_backward(tasks)
    once = {n: p.grad.clone() for n, p in net.named_parameters() if p.requires_grad}
    learner.meta_backward(tasks)
    assert net.blocks[0].conv.weight.grad is None
    for name, gradient in once.items():
        torch.testing.assert_close(net.get_parameter(name).grad, 2 * gradient)


@pytest.mark.parametrize("learner", [ANIL, ConvexIMAML])
def test_a_head_without_bias_in_a_foreign_model(learner):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(2 * 8 * 8, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)
    ).double()
    tasks = batch()
    trained = learner(net)
    assert trained.head == "3"
    trained.meta_backward(tasks)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    assert set(trained.adapt(tasks.support).parameters) == {"3.weight"}


def test_no_steps_is_no_adaptation():
    net, tasks = network(), batch()
    metrics = ANIL(net, inner_steps=0).meta_backward(tasks)
    expected = F.cross_entropy(net(tasks.query.images).flatten(0, 1), tasks.query.labels.flatten())
    torch.testing.assert_close(metrics.loss.mean(), expected.detach())
    assert metrics.support_loss.isnan().all()


def test_nan_is_refused_and_changes_nothing():
    net, tasks = network(), batch()
    tasks.support.images[1] = float("nan")
    learner = ConvexIMAML(net)
    with pytest.raises(FloatingPointError, match="loss of task 1 is nan"):
        learner.meta_backward(tasks)
    assert all(p.grad is None for p in net.parameters())
    assert int(learner.iteration) == 0


def test_registered_names():
    assert LEARNERS["anil"] is LEARNERS["convex-maml"] is ANIL is ConvexMAML
    assert LEARNERS["convex-imaml"] is ConvexIMAML


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"expected head to be one of 'head', got 'fc'"):
        ANIL(network(), head="fc")
    with pytest.raises(
        ValueError, match=r"expected model to be one with an nn\.Linear, .* Sequential without"
    ):
        ConvexIMAML(nn.Sequential(nn.Conv2d(2, 3, 8), nn.Flatten()))
    with pytest.raises(ValueError, match="expected lam to be above 0, got 0"):
        ConvexIMAML(network(), lam=0)
    with pytest.raises(ValueError, match=r"expected solver to be one of .* got 'sgd'"):
        ConvexIMAML(network(), solver="sgd")
    followed = nn.Sequential(network(), nn.LogSoftmax(-1))
    with pytest.raises(
        ValueError,
        match=r"expected head to be the layer .* got '0\.head', called 1 t.* changed afterwards",
    ):
        ANIL(followed).meta_backward(batch())


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


def replaced(head):
    head.forward = lambda x: 2 * F.linear(x, head.weight, head.bias)
    return head


@pytest.mark.parametrize("learner", [ANIL, ConvexIMAML, ProtoNet])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Cosine(6, 3), "a Cosine whose forward is another"),
        (lambda: replaced(nn.Linear(6, 3)), "a Linear whose forward is another"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), "whose weight something"),
        (lambda: prune.identity(nn.Linear(6, 3), "weight"), "whose weight something else makes"),
    ],
)
def test_a_head_that_is_not_affine_is_refused(learner, make, why):
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 6), nn.Tanh(), make())
    with pytest.raises(ValueError, match=rf"computes W x \+ b .*, got '3', {why}"):
        learner(net)


def test_a_head_that_is_tied_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[2].weight = net[3].weight
    with pytest.raises(ValueError, match=r"got '3', whose weight is that of another layer, too"):
        ANIL(net)


@pytest.mark.parametrize("hook", [lambda *_: None, lambda _, __, y: 2 * y], ids=["sees", "changes"])
def test_a_hook_of_the_head_may_see_but_not_change(hook):
    learner = ANIL(network("vmap"))
    expected = learner.adapt(batch().support).parameters
    learner.model.net.head.register_forward_hook(hook)
    if hook(None, None, 1) is None:
        torch.testing.assert_close(learner.adapt(batch().support).parameters, expected)
        return
    with pytest.raises(ValueError, match="whose output is changed afterwards"):
        learner.adapt(batch().support)
