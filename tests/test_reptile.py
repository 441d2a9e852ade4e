"""Reptile against torch.optim on one task after the other, and the order of its minibatches."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import (
    TaskBatch,
    assert_same_gradients,
    batch,
    leaves,
    network,
    plain_logits,
)

from metasparse_ext.algorithms import Reptile
from metasparse_ext.algorithms.reptile import minibatches

RATE, STEPS, SIZE = 0.05, 5, 4


def trained_plainly(net, images, labels, order, optimizer, state):
    """One task's weights after its minibatches, by an optimizer of torch that goes on from state.

    Returns them and the optimizer's state by parameter."""
    phi = leaves(net)
    used = optimizer(list(phi.values()))
    for p, kept in zip(phi.values(), state or [], strict=bool(state)):
        used.state[p] = {name: value.clone() for name, value in kept.items()}
    for chosen in order:
        used.zero_grad()
        F.cross_entropy(plain_logits(net, phi, images[chosen]), labels[chosen]).backward()
        used.step()
    return phi, [used.state[p] for p in phi.values()]


def assert_same_updates(net, expected):
    """As for gradients, but Adam makes more of a conv bias's rounding errors: they stay tiny."""
    for name in [name for name in expected if name.endswith("conv.bias")]:
        assert (net.get_parameter(name).grad - expected[name]).abs().max() < 1e-6 * RATE
        expected[name] = net.get_parameter(name).grad
    assert_same_gradients(net, expected)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=RATE, betas=(0.0, 0.999), eps=1e-8)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def pooled(tasks: TaskBatch, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    support, query = tasks
    return (
        torch.cat([support.images[t], query.images[t]]),
        torch.cat([support.labels[t], query.labels[t]]),
    )


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
@pytest.mark.parametrize(("name", "optimizer"), [("adam", adam), ("sgd", sgd)])
def test_tasks_end_where_training_them_ends(kind, name, optimizer):
    net, tasks = network(kind), batch(tasks=3)
    learner = Reptile(net, inner_lr=RATE, inner_steps=STEPS, inner_batch=SIZE, optimizer=name)
    metrics = learner.meta_backward(tasks)
    order = minibatches(5 + 7, SIZE, STEPS, torch.tensor(0))
    ends = [trained_plainly(net, *pooled(tasks, t), order, optimizer, None)[0] for t in range(3)]
    expected = {
        n: p.detach() - torch.stack([end[n].detach() for end in ends]).mean(0)
        for n, p in net.named_parameters()
    }
    assert_same_updates(net, expected)
    for t, end in enumerate(ends):
        logits = plain_logits(net, end, tasks.query.images[t])
        loss = F.cross_entropy(logits, tasks.query.labels[t]).detach()
        torch.testing.assert_close(metrics.loss[t], loss)


def test_the_inner_adam_outlives_its_tasks():
    """With one task a meta-batch the official procedure, its evaluation included."""
    net, state = network(), None
    learner = Reptile(net, inner_lr=RATE, inner_steps=STEPS, inner_batch=SIZE, adapt_batch=2)
    for iteration in range(3):
        tasks = batch(tasks=1, seed=10 * iteration)
        order = minibatches(12, SIZE, STEPS, torch.tensor(iteration))
        end, state = trained_plainly(net, *pooled(tasks, 0), order, adam, state)
        expected = {n: p.detach() - end[n].detach() for n, p in net.named_parameters()}
        net.zero_grad()
        learner.meta_backward(tasks)
        assert_same_updates(net, expected)
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.3 * p.grad
    assert learner.updates == 3 * STEPS
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    support = batch(tasks=1, seed=99).support
    adapted = learner.adapt(support)
    order = minibatches(5, 2, STEPS, torch.tensor(-1))
    end, _ = trained_plainly(net, support.images[0], support.labels[0], order, adam, state)
    for name, p in end.items():
        torch.testing.assert_close(adapted.parameters[name][0], p.detach())
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def test_several_tasks_keep_the_mean_of_their_moments():
    alone = []
    tasks = batch(tasks=2)
    for t in range(2):
        learner = Reptile(network(), inner_lr=RATE, inner_steps=2)
        learner.meta_backward(tasks.tasks(slice(t, t + 1)))
        alone.append(learner.square)
    learner = Reptile(network(), inner_lr=RATE, inner_steps=2)
    learner.meta_backward(tasks)
    torch.testing.assert_close(learner.square, torch.stack(alone).mean(0))


def test_the_query_set_may_be_kept_apart():
    tasks = batch(tasks=1)
    learner = Reptile(network(), inner_lr=RATE, inner_steps=STEPS, inner_batch=SIZE, pooled=False)
    learner.meta_backward(tasks)
    order = minibatches(5, SIZE, STEPS, torch.tensor(0))
    images, labels = tasks.support.images[0], tasks.support.labels[0]
    end, _ = trained_plainly(network(), images, labels, order, adam, None)
    expected = {n: p.detach() - end[n].detach() for n, p in network().named_parameters()}
    assert_same_updates(learner.model, expected)


def test_images_of_two_sizes_cannot_be_pooled():
    learner = Reptile(network(), inner_steps=1)
    tasks = batch()
    query = tasks.query._replace(images=tasks.query.images[..., 1:])
    wanted = r"^Reptile: expected batch\.query to be samples of the shapes .* pooled False, got .*7"
    with pytest.raises(ValueError, match=wanted):
        learner.meta_backward(TaskBatch(tasks.support, query))


def test_a_refused_step_leaves_the_moments():
    learner, tasks = Reptile(network()), batch()
    tasks.query.images[1] = torch.nan
    with pytest.raises(FloatingPointError, match="Reptile: the loss of task 1 is nan"):
        learner.meta_backward(tasks)
    assert learner.updates == 0
    assert not learner.square.any()


def test_minibatches_pass_through_all_samples_in_new_orders():
    order = minibatches(10, 4, 5, torch.tensor(3))
    assert order.shape == (5, 4)
    first, second = order.flatten().view(2, 10)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert not torch.equal(first, second)
    assert torch.equal(order, minibatches(10, 4, 5, torch.tensor(3)))
    assert not torch.equal(order, minibatches(10, 4, 5, torch.tensor(4)))


def test_minibatches_are_uniform():
    drawn = torch.stack([minibatches(8, 8, 1, torch.tensor(i))[0] for i in range(2000)])
    counts = torch.stack([(drawn == sample).sum(0) for sample in range(8)]).double()
    # 250 expected in each of 64 cells; chi-square of 49 degrees of freedom, far in its tail.
    assert ((counts - 250) ** 2 / 250).sum() < 95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_batch": 0}, "Reptile: expected inner_batch to be at least 1"),
        ({"adapt_batch": 0}, "Reptile: expected adapt_batch to be at least 1"),
        ({"optimizer": "lion"}, "Reptile: expected optimizer to be one of"),
    ],
    ids=["inner_batch", "adapt_batch", "optimizer"],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Reptile(network(), **options)
