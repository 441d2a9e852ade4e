"""Multi-MAML equals as many MAMLs, each on the tasks of its own distribution."""

import copy

import pytest
import torch
from support.plain_tasks import batch, network

from metasparse_ext.algorithms import MAML, MultiMAML

STEPS, RATE = 2, 0.2


def mixed(tasks=4, distributions=(1, 0, 0, 1)):
    support, query = batch(tasks)
    which = torch.tensor(distributions)
    return type(batch())(support._replace(distribution=which), query._replace(distribution=which))


def learners(kind="task-aware", **options):
    """A Multi-MAML of two distributions at different initializations, and those as networks."""
    options = {"inner_lr": RATE, "inner_steps": STEPS, **options}
    learner = MultiMAML(network(kind), distributions=2, **options)
    with torch.no_grad():
        learner.initializations += 0.1 * torch.randn_like(learner.initializations)
        if learner.learned_rates is not None:
            learner.learned_rates.values.uniform_(0.05, 0.4)
    return learner, [learner.network(d) for d in range(2)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_order": True},
        {"recompute": True},
        {"inner_lr": (0.3, 0.05)},
        {"rates": "parameter", "inner_lr": [0.3, 0.05]},
        {"rates": "layer", "multi_step": 10},
    ],
    ids=["second", "first", "again", "rates", "parameter-rates", "layer-rates"],
)
@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
def test_each_initialization_is_trained_by_its_own_tasks(kind, options):
    tasks = mixed()
    learner, networks = learners(kind, **options)
    metrics = learner.meta_backward(tasks)
    adapted = learner.adapt(tasks.support)
    for d, net in enumerate(networks):
        own = tasks.support.distribution == d
        rate = options.get("inner_lr", (RATE, RATE))[d]
        alone = MAML(net, **{"inner_steps": STEPS, **options, "inner_lr": rate})
        if alone.learned_rates is not None:
            with torch.no_grad():
                alone.learned_rates.values.copy_(learner.learned_rates.values[d])
        expected = alone.meta_backward(tasks.tasks(own))
        torch.testing.assert_close(metrics.loss[own], expected.loss)
        found = learner.layout.unflatten(learner.initializations.grad[d])
        for name, p in net.named_parameters():
            torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12)
        if alone.learned_rates is not None:
            found, wanted = learner.learned_rates.values.grad[d], alone.learned_rates.values.grad
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        parameters = alone.adapt(tasks.tasks(own).support).parameters
        for name, p in parameters.items():
            torch.testing.assert_close(adapted.parameters[name][own], p)


def test_unequal_shares_weigh_by_their_tasks():
    tasks = mixed(4, (0, 0, 0, 1))
    learner, networks = learners()
    learner.meta_backward(tasks)
    alone = MAML(networks[1], inner_lr=RATE, inner_steps=STEPS)
    alone.meta_backward(tasks.tasks(slice(3, 4)))
    found = learner.layout.unflatten(learner.initializations.grad[1])
    for name, p in networks[1].named_parameters():
        torch.testing.assert_close(found[name], p.grad / 2, rtol=1e-9, atol=1e-12)


def test_one_distribution_is_maml():
    net, tasks = network(), batch()
    alone = MAML(copy.deepcopy(net), inner_lr=RATE, inner_steps=STEPS)
    learner = MultiMAML(net, inner_lr=RATE, inner_steps=STEPS)
    alone.meta_backward(tasks)
    learner.meta_backward(tasks)
    expected = torch.cat([p.grad.flatten() for p in alone.model.parameters()])
    torch.testing.assert_close(learner.initializations.grad[0], expected, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_only_the_initializations_are_meta_parameters():
    learner, _ = learners()
    assert [n for n, p in learner.named_parameters() if p.requires_grad] == ["initializations"]


def test_tasks_must_say_their_distribution():
    learner, _ = learners()
    with pytest.raises(
        ValueError, match=r"MultiMAML: expected distribution of support to be given"
    ):
        learner.adapt(batch().support)
    with pytest.raises(ValueError, match="MultiMAML: expected distributions to be at least 1"):
        MultiMAML(network(), distributions=0)


def test_inner_rates_are_one_or_one_each():
    learner = MultiMAML(network(), inner_lr=(0.3, 0.05), distributions=2, rates="layer")
    assert learner.learned_rates.values[:, 0, 0].tolist() == [0.3, 0.05]
    assert "inner_lr=(0.3, 0.05)" in repr(learner)
    for inner_lr, expected in (
        ((0.1,), "a number above 0, or 2 of them"),
        ((0.1, 0.1, 0.1), "a number above 0, or 2 of them"),
        ((0.1, 0.0), "above 0, got 0.0"),
        (-1.0, "above 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=f"MultiMAML: expected inner_lr to be {expected}"):
            MultiMAML(network(), inner_lr=inner_lr, distributions=2)
