"""ResNet-12 against plain PyTorch, alone and under a learner."""

import doctest
import importlib

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import CHANNELS, WAYS, Samples, TaskBatch, leaves, mean_gradients
from torch.func import functional_call

from metasparse_ext.algorithms import MAML
from metasparse_ext.nn import FixedMask, MaskedConv2d, ResNet12, cost

SIZE, WIDTHS, RATE = 17, (2, 3, 2, 4), 0.1


def network(**options):
    torch.manual_seed(0)
    net = ResNet12(CHANNELS, SIZE, WIDTHS, WAYS, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5) if name.endswith("weight") else p.uniform_(-0.5, 0.5)
    return net


def plain_logits(p, x, activate, mean=False):
    """One task's network in the published order: activation, then pool."""

    def conv_norm(x, conv, norm, padding):
        x = F.conv2d(x, p[f"{conv}.weight"], padding=padding)
        scale, shift = p[f"{norm}.weight"], p[f"{norm}.bias"]
        return F.batch_norm(x, None, None, scale, shift, training=True)

    for b in (f"blocks.{i}" for i in range(4)):
        y = activate(conv_norm(x, f"{b}.convs.0", f"{b}.norms.0", 1))
        y = activate(conv_norm(y, f"{b}.convs.1", f"{b}.norms.1", 1))
        y = conv_norm(y, f"{b}.convs.2", f"{b}.norms.2", 1)
        y = y + conv_norm(x, f"{b}.shortcut", f"{b}.shortcut_norm", 0)
        x = F.max_pool2d(activate(y), 2)
    x = x.mean((-2, -1)) if mean else x.flatten(1)
    return F.linear(x, p["head.weight"], p["head.bias"])


ACTIVATIONS = {"leaky_relu": lambda x: F.leaky_relu(x, 0.1), "relu": F.relu}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("head", ["flatten", "mean"])
def test_every_task_is_the_plain_network(activation, head):
    net = network(activation=activation, head=head)
    x = torch.rand(3, 6, CHANNELS, SIZE, SIZE, dtype=torch.float64)
    own = {n: p + 0.1 * torch.randn(3, *p.shape).double() for n, p in net.named_parameters()}
    found, shared = functional_call(net, own, (x,)), net(x)
    for t in range(3):
        mine = {name: p[t] for name, p in own.items()}
        expected = plain_logits(mine, x[t], ACTIVATIONS[activation], head == "mean")
        torch.testing.assert_close(found[t], expected)
        torch.testing.assert_close(shared[t], net(x[t]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_maml_on_it_is_the_unrolled_one(activation):
    net = network(activation=activation)
    samples = [
        Samples(torch.rand(2, n, CHANNELS, SIZE, SIZE).double(), torch.randint(WAYS, (2, n)))
        for n in (5, 6)
    ]

    def unrolled(net, support, query):
        phi = theta = leaves(net)
        for _ in range(2):
            logits = plain_logits(phi, support.images, ACTIVATIONS[activation])
            loss = F.cross_entropy(logits, support.labels)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: p - RATE * g for (n, p), g in zip(phi.items(), grads, strict=True)}
        logits = plain_logits(phi, query.images, ACTIVATIONS[activation])
        grads = torch.autograd.grad(F.cross_entropy(logits, query.labels), list(theta.values()))
        return (dict(zip(theta, grads, strict=True)),)

    MAML(net, inner_lr=RATE, inner_steps=2).meta_backward(TaskBatch(*samples))
    (expected,) = mean_gradients(unrolled, net, TaskBatch(*samples))
    whole = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, parameter in net.named_parameters():
        assert (parameter.grad - expected[name]).norm() <= 1e-9 * whole, name


def test_published_size():
    net = ResNet12(3, 84, device="meta")
    assert net.head.in_features == 16_000
    assert sum(p.numel() for p in net.blocks.parameters()) == 12_424_320
    assert [block.shortcut.weight.shape[0] for block in net.blocks] == [64, 160, 320, 640]


def test_cost_counts_masks_and_shortcuts():
    net = ResNet12(3, 16, 4)
    dense = cost(net, (3, 16, 16))
    widths = [3, 4, 10, 20, 40]
    positions = [256, 64, 16, 4]
    macs = sum(
        (10 * i * o + 18 * o * o) * n
        for i, o, n in zip(widths, widths[1:], positions, strict=False)
    )
    assert dense.macs == macs + 40 * 5
    for module in net.modules():
        if isinstance(module, MaskedConv2d):
            module.masker = FixedMask(torch.zeros(module.weight.shape[:2]))
    assert cost(net, (3, 16, 16)).active_macs == 40 * 5


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="image_size to be at least 16"):
        ResNet12(3, 15)
    with pytest.raises(ValueError, match="width to be one integer or four"):
        ResNet12(3, 32, (4, 5))
    with pytest.raises(ValueError, match="ResNet12: expected activation to be one of"):
        ResNet12(3, 32, activation="gelu")
    with pytest.raises(ValueError, match="ResNet12: expected head to be one of"):
        ResNet12(3, 32, head="max")
    with pytest.raises(ValueError, match=r"x to be of shape \(N, 3, 32, 32\)"):
        ResNet12(3, 32, 2)(torch.zeros(2, 1, 32, 32))


def test_example_in_docstring():
    result = doctest.testmod(importlib.import_module("metasparse_ext.nn.resnet12"))
    assert result.attempted > 0
    assert result.failed == 0
