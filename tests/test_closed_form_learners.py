"""Prototypical networks and R2-D2 against their definitions, one task after the other."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import WAYS, batch, flat, leaves, mean_gradients, network, plain_logits
from torch import nn

from metasparse_ext.algorithms import LEARNERS, R2D2, ProtoNet
from metasparse_ext.data import TaskBatch
from metasparse_ext.implicit import ridge_head

KINDS = ("task-aware", "vmap")


def embedding(net, parameters, images):
    """The network of :func:`plain_logits` before its head."""
    eye = {n: p for n, p in parameters.items() if "head" not in n}
    prefix = "net." if any(name.startswith("net.") for name in parameters) else ""
    width = parameters[f"{prefix}head.weight"].shape[1]
    eye[f"{prefix}head.weight"] = torch.eye(width, dtype=torch.float64)
    eye[f"{prefix}head.bias"] = torch.zeros(width, dtype=torch.float64)
    return plain_logits(net, eye, images)


def by_prototypes(net, support, query, temperature):
    theta = leaves(net)
    known, asked = (embedding(net, theta, each.images) for each in (support, query))
    logits = []
    for way in range(WAYS):
        own = known[support.labels == way]
        prototype = own.mean(0) if len(own) else torch.zeros_like(known[0])
        logits.append(-(asked - prototype).square().sum(1) / temperature)
    return ended(theta, torch.stack(logits, 1), query)


def by_ridge(net, support, query, learned):
    theta = {**leaves(net), **{n: v.clone().requires_grad_() for n, v in learned.items()}}
    known, asked = (
        torch.cat([z, torch.ones_like(z[:, :1])], 1)
        for z in (embedding(net, theta, each.images) for each in (support, query))
    )
    count = len(known)
    eye = torch.eye(known.shape[1], dtype=torch.float64)
    gram = known.T @ known / count + theta["log_lam"].exp() * eye
    weight = torch.linalg.inv(gram) @ known.T @ F.one_hot(support.labels, WAYS).double() / count
    return ended(theta, theta["scale"] * asked @ weight + theta["shift"], query)


def ended(theta, logits, query):
    loss = F.cross_entropy(logits, query.labels)
    gradient = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
    accuracy = (logits.argmax(1) == query.labels).double().mean()
    return dict(zip(theta, gradient, strict=True)), loss.detach(), accuracy


def assert_equals(learner, metrics, expected, loss, accuracy):
    """To 1e-12 of the whole gradient's norm."""
    named = {n.removeprefix("model."): p for n, p in learner.named_parameters()}
    assert named.keys() == expected.keys()
    size = flat(expected).norm()
    for name, parameter in named.items():
        assert (parameter.grad - expected[name]).norm() <= 1e-12 * size, name
        if "head" in name:
            assert not parameter.grad.any()
    torch.testing.assert_close(metrics.loss, loss, rtol=1e-12, atol=0)
    assert torch.equal(metrics.accuracy, accuracy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_prototypical_networks_equal_a_loop(kind, temperature):
    net, tasks = network(kind), batch(tasks=3)
    learner = ProtoNet(net, temperature=temperature)
    metrics = learner.meta_backward(tasks)
    assert_equals(learner, metrics, *mean_gradients(by_prototypes, net, tasks, temperature))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeats", [1, 9], ids=["woodbury", "primal"])
def test_r2d2_equals_a_loop(kind, repeats):
    net, tasks = network(kind), batch(tasks=3)
    images = torch.cat([tasks.support.images + k / 10 for k in range(repeats)], 1)
    labels = tasks.support.labels.repeat(1, repeats)
    tasks = TaskBatch(tasks.support._replace(images=images, labels=labels), tasks.query)
    learner = R2D2(net, lam=0.3, scale=3.0)
    with torch.no_grad():
        learner.shift.fill_(0.5)
    learned = {n: p.detach() for n, p in learner.named_parameters() if not n.startswith("model.")}
    assert learned.keys() == {"log_lam", "scale", "shift"}
    metrics = learner.meta_backward(tasks)
    assert_equals(learner, metrics, *mean_gradients(by_ridge, net, tasks, learned))
    assert learner.log_lam.grad != 0
    assert learner.scale.grad != 0


@pytest.mark.parametrize("kind", [ProtoNet, R2D2])
def test_adapted_heads_give_the_losses_of_training(kind):
    net, tasks = network(), batch(tasks=3)
    learner = kind(net)
    metrics = learner.meta_backward(tasks)
    adapted = learner.adapt(tasks.support)
    assert set(adapted.parameters) == {"head.weight", "head.bias"}
    loss = F.cross_entropy(adapted(tasks.query.images).mT, tasks.query.labels, reduction="none")
    torch.testing.assert_close(loss.mean(-1).detach(), metrics.loss)
    assert metrics.support_loss.isfinite().all()


def test_logits_are_distances_but_for_a_number_an_image():
    net, tasks = network(), batch(tasks=2)
    learner = ProtoNet(net)
    logits = learner.adapt(tasks.support)(tasks.query.images)
    for t in range(2):
        theta = leaves(net)
        known = embedding(net, theta, tasks.support.images[t])
        asked = embedding(net, theta, tasks.query.images[t])
        labels = tasks.support.labels[t]
        for way in labels.unique():
            far = (asked - known[labels == way].mean(0)).square().sum(1)
            torch.testing.assert_close(logits[t, :, way] - asked.square().sum(1), -far)


def test_a_head_without_bias():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(2 * 8 * 8, 6), nn.Tanh(), nn.Linear(6, WAYS, bias=False)
    net = nn.Sequential(*layers).double()
    learner, tasks = R2D2(net), batch()
    learner.meta_backward(tasks)
    assert set(learner.adapt(tasks.support).parameters) == {"3.weight"}
    assert not learner.shift.grad.any()
    with pytest.raises(ValueError, match=r"ProtoNet: expected model to be .* bias.* '3' without"):
        ProtoNet(net)


def test_training_lowers_the_loss():
    for name in ("protonet", "r2d2"):
        learner, tasks = LEARNERS[name](network()), batch(tasks=4)
        optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            losses.append(float(learner.meta_backward(tasks).loss.mean()))
            optimizer.step()
        assert losses[-1] < losses[0], name


def test_a_task_that_is_not_finite_spoils_itself_alone():
    features = torch.randn(3, 4, 6)
    labels = torch.arange(4).expand(3, 4) % 2
    whole, _ = ridge_head(features, labels, 2, lam=0.1)
    features[1] = torch.nan
    found, _ = ridge_head(features, labels, 2, lam=0.1)
    assert found[1].isnan().any()
    assert torch.equal(found[::2], whole[::2])


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 7, 2)], ids=["woodbury", "primal"])
def test_the_ridge_head_has_derivatives_to_any_order(shape):
    torch.manual_seed(0)
    features = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    lam = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, shape[:2])

    def fit(features, lam):
        return ridge_head(features, labels, 3, lam=lam)

    assert torch.autograd.gradcheck(fit, (features, lam))
    assert torch.autograd.gradgradcheck(fit, (features, lam))


@pytest.mark.parametrize("learner", [ProtoNet, R2D2])
def test_refusals(learner):
    with pytest.raises(ValueError, match=r"expected loss to be None"):
        learner(network(), loss=F.mse_loss)
    option = {ProtoNet: "temperature", R2D2: "lam"}[learner]
    with pytest.raises(ValueError, match=rf"expected {option} to be above 0, got 0"):
        learner(network(), **{option: 0})
