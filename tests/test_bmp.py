"""BMP against its equations: one task after the other, the mask straight-through."""

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
    plain_rates,
)
from torch import Tensor, nn

from metasparse_ext.algorithms import BMP
from metasparse_ext.algorithms.maml import step_weights

STEPS, RATE = 3, 0.3
OWN = ("emphasis", "perceptron", "learned_rates")


def bmp(kind="task-aware", **options):
    """A learner whose masks switch some layers on and some off, not the same for all tasks."""
    learner = BMP(network(kind), inner_lr=RATE, inner_steps=STEPS, initial_bias=0.0, **options)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            if name.startswith("learned_rates"):
                p.uniform_(0.05, 0.4)
            elif name.startswith(OWN):
                p.uniform_(-1, 1)
        # Gradients differ between tasks, and their means are small.
        for emphasis in learner.emphasis, getattr(learner.emphasis, "whole", None):
            if isinstance(emphasis, Tensor):
                emphasis[len(learner.units) :] *= 1000
    return learner


def layers_of(theta, unit):
    """The names of the tensors of each backbone layer."""
    layers = {}
    for name in theta:
        if "head" not in name:
            key = name if unit == "tensor" else name.rpartition(".")[0]
            layers.setdefault(key, []).append(name)
    return layers


def plain_emphasis(own, images):
    """u: the learned vector, or that of one task's images."""
    if "emphasis" in own:
        return own["emphasis"]
    side = images.shape[-1] // 4
    pooled = images.unflatten(-1, (4, side)).unflatten(-3, (4, side)).mean((-3, -1)).flatten(1)
    hidden = (pooled @ own["emphasis.each.weight"].T + own["emphasis.each.bias"]).clamp(min=0)
    return 1 + own["emphasis.whole.weight"] @ hidden.mean(0)


def masked_rates(base, phi, grads, own, unit, images, through_weights):
    """The rate of each tensor, and the mask; straight-through by hand.

    ``base`` are the rates of the layers that move."""
    layers = layers_of(phi, unit)
    weights = phi if through_weights else {name: p.detach() for name, p in phi.items()}
    embedding = torch.stack(
        [
            torch.cat([values[name].flatten() for name in names]).mean()
            for values in (weights, {n: g.detach() for n, g in grads.items()})
            for names in layers.values()
        ]
    )
    x = embedding * plain_emphasis(own, images)
    depth = sum("perceptron" in name and name.endswith("weight") for name in own)
    for i in range(depth):
        x = own[f"perceptron.{2 * i}.weight"] @ x + own[f"perceptron.{2 * i}.bias"]
        x = x.clamp(min=0) if i < depth - 1 else x
    mask = (x > 0).double() + x - x.detach()
    rates = dict(base)
    for m, names in zip(mask, layers.values(), strict=True):
        rates |= {name: base[name] * m for name in names}
    return rates, (x > 0).double()


def unrolled(net, support, query, learner, unit, first_order, weights):
    theta = phi = leaves(net)
    own = {
        n: p.detach().clone().requires_grad_()
        for n, p in learner.named_parameters()
        if n.startswith(OWN)
    }
    base, masks, total = lambda k: dict.fromkeys(theta, RATE), [], 0.0
    if learner.learned_rates is not None:
        own["learned_rates.values"], base = plain_rates(learner)
    for k in range(STEPS):
        loss = F.cross_entropy(plain_logits(net, phi, support.images), support.labels)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        grads = dict(zip(phi, grads, strict=True))
        if first_order:
            grads = {name: g.detach() for name, g in grads.items()}
        through = learner.through_weights
        rates, mask = masked_rates(base(k), phi, grads, own, unit, support.images, through)
        masks.append(mask)
        phi = {name: p - rates[name] * grads[name] for name, p in phi.items()}
        loss = F.cross_entropy(plain_logits(net, phi, query.images), query.labels)
        total = total + weights[k] * loss
    sources = {**theta, **own}
    gradient = torch.autograd.grad(total, list(sources.values()))
    return dict(zip(sources, gradient, strict=True)), loss.detach(), torch.stack(masks)


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_order": True},
        {"recompute": True},
        {"unit": "module"},
        {"hidden_layers": 2},
        {"rates": "parameter"},
        {"emphasis": "batch"},
        {"through_weights": True},
        {"through_weights": True, "first_order": True},
        {"multi_step": 10},
        {"rates": "layer", "first_order": True},
    ],
    ids=lambda options: "-".join(map(str, options)) or "default",
)
def test_meta_gradient_is_that_of_the_equations(kind, options):
    learner, tasks = bmp(kind, **options), batch(tasks=3)
    unit, first_order = options.get("unit", "tensor"), options.get("first_order", False)
    weights = step_weights(STEPS, 0.0) if "multi_step" in options else [0.0, 0.0, 1.0]
    expected, loss, masks = mean_gradients(
        unrolled, learner.model, tasks, learner, unit, first_order, weights
    )
    assert (masks != masks[0]).any()
    moved = learner.moved_layers(tasks.support)
    assert list(moved) == list(layers_of(dict(learner.model.named_parameters()), unit))
    assert torch.equal(torch.stack(list(moved.values()), -1).transpose(0, 1), masks)
    metrics = learner.meta_backward(tasks)
    torch.testing.assert_close(metrics.loss, loss)
    for name in [name for name in expected if name.startswith(OWN)]:
        wanted, found = expected.pop(name), learner.get_parameter(name).grad
        assert (found - wanted).norm() <= 1e-9 * wanted.norm(), name
    assert_same_gradients(learner.model, expected)


def test_layers_that_are_off_stay_and_the_head_moves():
    learner, tasks = bmp(), batch(tasks=2)
    learner.adapt_steps = 1
    adapted, moved = learner.adapt(tasks.support), learner.moved_layers(tasks.support)
    for name, start in learner.model.named_parameters():
        for t in range(2):
            stays = torch.equal(adapted.parameters[name][t], start)
            assert stays is (name in moved and not moved[name][0, t]), name


def test_moved_layers_are_asked_for_as_adaptation_is():
    """In inference mode, of no steps, and not of what are no samples."""
    learner, support = bmp(), batch(tasks=2).support
    expected = learner.moved_layers(support)
    with torch.inference_mode():
        found = learner.moved_layers(support)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    learner.adapt_steps = 0
    assert {tuple(moved.shape) for moved in learner.moved_layers(support).values()} == {(0, 2)}
    with pytest.raises(TypeError, match=r"^BMP: expected support to be Samples"):
        learner.moved_layers(support.images)


@pytest.mark.parametrize("emphasis", ["vector", "batch"])
def test_training_starts_as_maml(emphasis):
    tasks = batch()
    learner = BMP(network(), inner_lr=RATE, inner_steps=STEPS, emphasis=emphasis)
    assert all(steps.all() for steps in learner.moved_layers(tasks.support).values())


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="BMP: expected unit to be one of"):
        BMP(network(), unit="block")
    with pytest.raises(ValueError, match="BMP: expected hidden_layers to be at least 1"):
        BMP(network(), hidden_layers=0)
    with pytest.raises(ValueError, match="BMP: expected emphasis to be one of"):
        BMP(network(), emphasis="task")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="BMP: expected model to be a network of convolutions"):
        BMP(flat, emphasis="batch")
    with pytest.raises(ValueError, match="BMP: expected head to be one of"):
        BMP(network(), head="blocks.0.conv")
    with pytest.raises(ValueError, match="BMP: expected model to be one with more parameters than"):
        BMP(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
