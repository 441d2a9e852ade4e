"""CAVIA against its definition, one task after the other, and its place in the networks."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import (
    CHANNELS,
    WAYS,
    Opaque,
    Samples,
    assert_same_gradients,
    batch,
    leaves,
    mean_gradients,
    network,
)
from torch import nn

from metasparse_ext.algorithms import CAVIA
from metasparse_ext.nn import Conv4, FiLM, ResNet12

STEPS, RATE, CONTEXT = 3, 0.7, 5


def modulated(kind="task-aware"):
    net = network(kind)
    inner = net.net if isinstance(net, Opaque) else net
    inner.blocks[1].modulate(CONTEXT)
    return net


def plain_logits(net, theta, phi, images):
    """One task's two-block Conv-4 whose second block is modulated by the context phi."""
    prefix = "net." if isinstance(net, Opaque) else ""
    theta = {name.removeprefix(prefix): p for name, p in theta.items()}
    x = images
    for b in range(2):
        block = f"blocks.{b}"
        x = F.conv2d(x, theta[f"{block}.conv.weight"], theta[f"{block}.conv.bias"], 2, 1)
        scale, shift = theta[f"{block}.norm.weight"], theta[f"{block}.norm.bias"]
        x = F.batch_norm(x, None, None, scale, shift, training=True)
        if b == 1:
            film = theta["blocks.1.film.generator.weight"] @ phi
            gamma, beta = (film + theta["blocks.1.film.generator.bias"]).split(x.shape[1])
            x = x * gamma[:, None, None] + beta[:, None, None]
        x = F.relu(x)
    return F.linear(x.flatten(1), theta["head.weight"], theta["head.bias"])


def adapted_context(net, theta, support, first_order):
    phi = torch.zeros(CONTEXT, dtype=torch.float64, requires_grad=True)
    for _ in range(STEPS):
        loss = F.cross_entropy(plain_logits(net, theta, phi, support.images), support.labels)
        (slope,) = torch.autograd.grad(loss, phi, create_graph=True)
        phi = phi - RATE * slope
    return phi.detach() if first_order else phi


def plain_task_gradient(net, support, query, first_order):
    theta = leaves(net)
    phi = adapted_context(net, theta, support, first_order)
    loss = F.cross_entropy(plain_logits(net, theta, phi, query.images), query.labels)
    gradient = torch.autograd.grad(loss, list(theta.values()))
    return dict(zip(theta, gradient, strict=True)), loss.detach()


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_meta_gradient_is_the_unrolled_one(kind, first_order):
    net, tasks = modulated(kind), batch(tasks=3)
    learner = CAVIA(net, inner_lr=RATE, inner_steps=STEPS, first_order=first_order)
    metrics = learner.meta_backward(tasks)
    expected, loss = mean_gradients(plain_task_gradient, net, tasks, first_order)
    assert_same_gradients(net, expected)
    torch.testing.assert_close(metrics.loss, loss)


def test_adaptation_moves_the_context_alone():
    net, tasks = modulated(), batch()
    learner = CAVIA(net, inner_lr=RATE, inner_steps=1, adapt_steps=STEPS)
    adapted = learner.adapt(tasks.support)
    assert set(adapted.parameters) == {"blocks.1.film.context"}
    logits = adapted(tasks.query.images)
    for t in range(3):
        one = Samples(tasks.support.images[t], tasks.support.labels[t])
        phi = adapted_context(net, leaves(net), one, True)
        torch.testing.assert_close(adapted.parameters["blocks.1.film.context"][t], phi)
        expected = plain_logits(net, leaves(net), phi, tasks.query.images[t])
        torch.testing.assert_close(logits[t], expected)
    assert not any("context" in name for name in learner.state_dict())
    assert not any("context" in name for name, _ in learner.named_parameters())


@pytest.mark.parametrize(
    "net",
    [
        lambda: Conv4(CHANNELS, 16, 4, WAYS, strided=False, order="norm_pool_act"),
        lambda: Conv4(CHANNELS, 16, 4, WAYS),
        lambda: ResNet12(CHANNELS, 16, (2, 3, 4, 5), WAYS),
    ],
    ids=["pooled", "strided", "resnet12"],
)
def test_the_third_block_of_the_backbones_is_modulated(net):
    net = net()
    learner = CAVIA(net, context=6)
    films = {n for n, m in net.named_modules() if isinstance(m, FiLM)}
    assert films == {"blocks.2.film"}
    assert learner.layout.numel == 6
    assert net.blocks[2].film.generator.bias.any()
    assert net(torch.rand(2, CHANNELS, 16, 16)).shape == (2, WAYS)


def test_a_model_without_a_place_for_the_context_is_named():
    with pytest.raises(
        ValueError,
        match=r"CAVIA: expected model to be one with a .*FiLM, or with a block 2 .* Sequential",
    ):
        CAVIA(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="block 7"):
        CAVIA(network(), block=7)
    with pytest.raises(ValueError, match="got 'act_pool_norm', which no modulation fits"):
        CAVIA(Conv4(1, 16, 4, strided=False, order="act_pool_norm"))
