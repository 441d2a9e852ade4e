"""Learned rates, multi-step loss and first-order warm-up against unrolled gradient descent."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import (
    assert_same_gradients,
    batch,
    flat,
    leaves,
    mean_gradients,
    network,
    plain_logits,
    plain_rates,
)

from metasparse_ext.algorithms import FOMAML, MAML
from metasparse_ext.algorithms.maml import step_weights

STEPS, RATE = 3, 0.2


def unrolled(net, support, query, learner, weights, first_order):
    """One task: gradients of the weighted query losses in theta and in the learned rates."""
    theta = phi = leaves(net)
    if learner.learned_rates is None:
        sources, at = dict(theta), lambda k: dict.fromkeys(theta, RATE)
    else:
        values, at = plain_rates(learner)
        sources = {**theta, "rates": values}
    total = 0.0
    for k in range(STEPS):
        loss = F.cross_entropy(plain_logits(net, phi, support.images), support.labels)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        grads = [g.detach() for g in grads] if first_order else grads
        rates = at(k)
        phi = {n: p - rates[n] * g for (n, p), g in zip(phi.items(), grads, strict=True)}
        last = F.cross_entropy(plain_logits(net, phi, query.images), query.labels)
        total = total + weights[k] * last
    gradient = torch.autograd.grad(total, list(sources.values()))
    return dict(zip(sources, gradient, strict=True)), last.detach()


LAST = [0.0, 0.0, 1.0]


def check(learner, weights, first_order):
    net, tasks = learner.model, batch(tasks=3)
    metrics = learner.meta_backward(tasks)
    expected, loss = mean_gradients(unrolled, net, tasks, learner, weights, first_order)
    if learner.learned_rates is not None:
        rates, found = expected.pop("rates"), learner.learned_rates.values.grad
        assert (found - rates).norm() <= 1e-9 * rates.norm()
    assert_same_gradients(net, expected)
    torch.testing.assert_close(metrics.loss, loss)


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
@pytest.mark.parametrize("rates", ["parameter", "layer"])
@pytest.mark.parametrize(
    "options",
    [{}, {"recompute": True}, {"first_order": True}],
    ids=["second-order", "recompute", "first-order"],
)
def test_learned_rates(kind, rates, options):
    learner = MAML(network(kind), inner_lr=RATE, inner_steps=STEPS, rates=rates, **options)
    with torch.no_grad():
        learner.learned_rates.values.uniform_(0.05, 0.4)
    check(learner, LAST, options.get("first_order", False))


def test_fomaml_takes_the_options_that_are_left():
    learner = FOMAML(network(), inner_lr=RATE, inner_steps=STEPS, rates="layer", multi_step=10)
    check(learner, step_weights(STEPS, 0.0), True)


@pytest.mark.parametrize("done", [0, 4, 9, 10])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_multi_step_loss(done, first_order):
    learner = MAML(
        network(), inner_lr=RATE, inner_steps=STEPS, multi_step=10, first_order=first_order
    )
    learner.iteration.fill_(done)
    check(learner, LAST if done == 10 else step_weights(STEPS, done / 10), first_order)


def test_multi_step_loss_with_learned_rates():
    learner = MAML(network(), inner_lr=RATE, inner_steps=STEPS, multi_step=10, rates="layer")
    check(learner, step_weights(STEPS, 0.0), False)


@pytest.mark.parametrize(("done", "first_order"), [(0, True), (4, True), (5, False)])
def test_first_order_warm_up(done, first_order):
    learner = MAML(network(), inner_lr=RATE, inner_steps=STEPS, first_order_until=5)
    learner.iteration.fill_(done)
    check(learner, LAST, first_order)


def test_weights_of_a_multi_step_loss():
    assert step_weights(4, 0.0) == pytest.approx([0.25] * 4)
    assert step_weights(4, 0.5) == pytest.approx([0.125] * 3 + [0.625])
    assert step_weights(4, 0.99) == pytest.approx([0.0075] * 3 + [1 - 0.0225])
    assert step_weights(1, 0.3) == [1.0]


@pytest.mark.parametrize("rates", ["parameter", "layer"])
def test_adaptation_takes_the_learned_rates(rates):
    tasks = batch(tasks=2)
    learner = MAML(network(), inner_lr=RATE, inner_steps=STEPS, adapt_steps=5, rates=rates)
    with torch.no_grad():
        learner.learned_rates.values.uniform_(0.05, 0.4)
    _, at = plain_rates(learner)
    found = learner.adapt(tasks.support)
    for t in range(2):
        phi = leaves(learner.model)
        for k in range(5):
            logits = plain_logits(learner.model, phi, tasks.support.images[t])
            loss = F.cross_entropy(logits, tasks.support.labels[t])
            grads = torch.autograd.grad(loss, list(phi.values()))
            rates = at(k)
            phi = {n: p - rates[n] * g for (n, p), g in zip(phi.items(), grads, strict=True)}
        own = {name: p[t] for name, p in found.parameters.items()}
        torch.testing.assert_close(flat(own), flat(phi).detach())


def test_rates_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="MAML: expected rates to be one of"):
        MAML(network(), rates="meta-sgd")
    with pytest.raises(ValueError, match="MAML: expected multi_step to be at least 0"):
        MAML(network(), multi_step=-1)
    with pytest.raises(ValueError, match="MAML: expected first_order_until to be at least 0"):
        MAML(network(), first_order_until=-1)


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
def test_recomputed_steps_drop_out_the_same_numbers(kind):
    def step(**options):
        torch.manual_seed(1)
        net = torch.nn.Sequential(network(kind), torch.nn.Dropout(0.5))
        learner = MAML(net, inner_lr=RATE, inner_steps=STEPS, **options)
        torch.manual_seed(2)
        learner.meta_backward(batch())
        return [p.grad for p in learner.parameters()], torch.rand(1)

    torch.testing.assert_close(step(recompute=True), step(), rtol=1e-9, atol=1e-12)
