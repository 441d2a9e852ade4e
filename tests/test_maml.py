"""MAML and FOMAML against their definition, one task after the other."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import batch, leaves, mean_gradients, network, plain_logits
from torch import nn
from torch.func import functional_call

from metasparse_ext.algorithms import FOMAML, LEARNERS, MAML
from metasparse_ext.nn import sparsify

STEPS, RATE = 3, 0.2


def plain_task_gradient(net, support, query, first_order):
    """The definition: unrolled gradient descent on one task, differentiated by autograd."""
    theta = leaves(net)
    phi = theta
    for _ in range(STEPS):
        loss = F.cross_entropy(plain_logits(net, phi, support.images), support.labels)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
        phi = {name: p - RATE * g for (name, p), g in zip(phi.items(), grads, strict=True)}
    logits = plain_logits(net, phi, query.images)
    loss = F.cross_entropy(logits, query.labels)
    accuracy = (logits.argmax(-1) == query.labels).double().mean()
    gradient = torch.autograd.grad(loss, list(theta.values()))
    return dict(zip(theta, gradient, strict=True)), loss.detach(), accuracy


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
@pytest.mark.parametrize(
    "options",
    [{}, {"recompute": True}, {"first_order": True}],
    ids=["second-order", "recompute", "first-order"],
)
def test_meta_gradient_is_the_unrolled_one(kind, options):
    net, tasks = network(kind), batch(tasks=3)
    learner = MAML(net, inner_lr=RATE, inner_steps=STEPS, **options)
    metrics = learner.meta_backward(tasks)
    expected, loss, accuracy = mean_gradients(
        plain_task_gradient, net, tasks, options.get("first_order", False)
    )
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(metrics.loss, loss)
    torch.testing.assert_close(metrics.accuracy, accuracy)


def test_fomaml_is_maml_without_hessians():
    gradients = []
    for learner in (
        MAML(network(), inner_lr=RATE, inner_steps=STEPS, first_order=True),
        LEARNERS["fomaml"](network(), inner_lr=RATE, inner_steps=STEPS),
    ):
        learner.meta_backward(batch())
        gradients.append([p.grad for p in learner.parameters()])
    assert LEARNERS["fomaml"] is FOMAML
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_adapted_tasks_are_gradient_descent():
    net, tasks = network(), batch()
    learner = MAML(net, inner_lr=RATE, inner_steps=1, adapt_steps=2)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    adapted = learner.adapt(tasks.support)
    logits = adapted(tasks.query.images)
    for t in range(adapted.tasks):
        phi = leaves(net)
        for _ in range(2):
            loss = F.cross_entropy(
                plain_logits(net, phi, tasks.support.images[t]), tasks.support.labels[t]
            )
            grads = torch.autograd.grad(loss, list(phi.values()))
            phi = {name: p - RATE * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        torch.testing.assert_close(logits[t], plain_logits(net, phi, tasks.query.images[t]))
        for name, p in phi.items():
            torch.testing.assert_close(adapted.parameters[name][t], p)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


def test_gradients_accumulate_and_iterations_count():
    learner = MAML(network(), inner_lr=RATE, inner_steps=STEPS)
    learner.meta_backward(batch())
    once = [p.grad.clone() for p in learner.parameters()]
    learner.meta_backward(batch())
    for p, g in zip(learner.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)
    assert learner.state_dict()["iteration"] == 2
    assert [n for n, _ in learner.named_parameters()] == [
        f"model.{n}" for n, _ in learner.model.named_parameters()
    ]


def test_frozen_parameters_are_shared_and_get_no_gradient():
    net = network()
    net.blocks[0].requires_grad_(False)
    tasks = batch()
    learner = MAML(net, inner_lr=RATE, inner_steps=STEPS)
    learner.meta_backward(tasks)
    assert all(p.grad is None for p in net.blocks[0].parameters())
    assert "blocks.0.conv.weight" not in learner.adapt(tasks.support).parameters

    def frozen(net, support, query):
        free = {n: p for n, p in leaves(net).items() if not n.startswith("blocks.0.")}
        fixed = {n: p.detach() for n, p in net.named_parameters() if n not in free}
        phi = free
        for _ in range(STEPS):
            logits = plain_logits(net, {**fixed, **phi}, support.images)
            loss = F.cross_entropy(logits, support.labels)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: p - RATE * g for (n, p), g in zip(phi.items(), grads, strict=True)}
        loss = F.cross_entropy(plain_logits(net, {**fixed, **phi}, query.images), query.labels)
        grads = torch.autograd.grad(loss, list(free.values()))
        return dict(zip(free, grads, strict=True)), loss.detach()

    expected, _ = mean_gradients(frozen, net, tasks)
    for name, gradient in expected.items():
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("support", "where"), [(True, "at inner step 0"), (False, "on the query set")]
)
def test_a_loss_that_is_not_finite_is_refused(support, where):
    learner, tasks = MAML(network(), inner_lr=RATE, inner_steps=STEPS), batch()
    (tasks.support if support else tasks.query).images[1] = torch.nan
    with pytest.raises(FloatingPointError, match=f"MAML: the loss of task 1 is nan {where}"):
        learner.meta_backward(tasks)
    assert all(p.grad is None for p in learner.parameters())
    assert learner.iteration == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inner_lr": 0.0}, ValueError, "MAML: expected inner_lr to be above 0"),
        ({"inner_steps": -1}, ValueError, "MAML: expected inner_steps to be at least 0"),
        ({"adapt_steps": -1}, ValueError, "MAML: expected adapt_steps to be at least 0"),
        ({"model": len}, TypeError, "MAML: expected model to be an nn.Module"),
    ],
    ids=["inner_lr", "inner_steps", "adapt_steps", "model"],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        MAML(**{"model": network(), **options})


def test_batch_norm_with_running_statistics_is_named():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3),
        torch.nn.BatchNorm2d(3),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(3),
    ).double()
    net(batch().support.images[0])
    with pytest.raises(ValueError, match="MAML: '1' updates its running statistics"):
        MAML(net)


class Residual(nn.Module):
    """A user's own network, with stock layers, a skip connection and a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.depth(F.gelu(self.body(x)))).mean((-2, -1)))


def test_any_module_can_be_meta_learned():
    net = sparsify(Residual().double())
    tasks = batch()

    def unrolled(net, support, query):
        phi = theta = leaves(net)
        for _ in range(STEPS):
            loss = F.cross_entropy(functional_call(net, phi, support.images), support.labels)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: p - RATE * g for (n, p), g in zip(phi.items(), grads, strict=True)}
        loss = F.cross_entropy(functional_call(net, phi, query.images), query.labels)
        grads = torch.autograd.grad(loss, list(theta.values()))
        return dict(zip(theta, grads, strict=True)), loss.detach()

    MAML(net, inner_lr=RATE, inner_steps=STEPS).meta_backward(tasks)
    expected, _ = mean_gradients(unrolled, net, tasks)
    for name, gradient in expected.items():
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12)


def test_samples_without_a_task_axis_are_refused():
    learner, support = MAML(network()), batch().support
    with pytest.raises(ValueError, match=r"expected support\.labels to be \(T, N\) = \(5, 2\)"):
        learner.adapt(type(support)(support.images[0], support.labels[0]))
    with pytest.raises(ValueError, match=r"expected support\.labels to be \(T, N\) = \(3, 5\)"):
        learner.adapt(support._replace(labels=support.labels[:, :4]))
    with pytest.raises(ValueError, match="with T = 3 like the parameters"):
        learner.adapt(support)(support.images[:2])
