"""MMSUP and the learned top-k mask against their equations, one task after the other."""

import math

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
from torch import nn

from metasparse_ext.algorithms import MMSUP
from metasparse_ext.nn import LearnedTopKMask, MaskedConv2d

STEPS, RATE, FLOOR = 3, 0.3, 0.05


def plain_mask(weight, logit, *, granularity, signed, gradient, edge_popup):
    """The mask of one layer's weight (O, I, k, k), by sorting, with its derivatives by hand."""
    score = weight if signed else weight.abs()
    if granularity == "kernel":
        score = score.mean((-2, -1))
    elif granularity == "channel":
        score = score.mean((-3, -2, -1))
    s = logit.sigmoid().clamp(min=FLOOR)
    n = score.numel()
    k = round(s.item() * n)
    order = score.detach().flatten().argsort(descending=True, stable=True)
    hard = torch.zeros(n, dtype=torch.float64)
    hard[order[:k]] = 1
    slope = torch.ones(n, dtype=torch.float64)
    if gradient == "boundary":
        slope = torch.zeros_like(slope)
        slope[order[k - 1]] = n
    mask = hard
    if edge_popup:
        mask = mask + score.flatten() - score.flatten().detach()
    mask = mask + slope * (s - s.detach()) * (1 / n if gradient == "mean" else 1)
    mask = mask.view_as(score)
    if granularity == "channel":
        per_kernel = 1 / weight.shape[1] if gradient == "mean" else 1
        mask = hard[:, None].expand(weight.shape[:2]) + per_kernel * (mask - hard)[:, None]
    return mask if mask.dim() == 4 else mask[:, :, None, None]


def masked(phi, choices):
    """The parameters with every convolution's weight masked, and without the logits."""
    values = {name: p for name, p in phi.items() if not name.endswith("logit")}
    for name in [name for name in phi if name.endswith("logit")]:
        weight = name.replace("masker.logit", "weight")
        values[weight] = phi[weight] * plain_mask(phi[weight], phi[name], **choices)
    return values


def unrolled(net, support, query, learner, choices, first_order, adapt_density):
    theta = phi = leaves(net)
    sources, rates = dict(theta), lambda k: dict.fromkeys(theta, RATE)
    if learner.learned_rates is not None:
        sources["learned_rates.values"], rates = plain_rates(learner)
    for k in range(STEPS):
        logits = plain_logits(net, masked(phi, choices), support.images)
        loss = F.cross_entropy(logits, support.labels)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        grads = [g.detach() for g in grads] if first_order else grads
        fixed = () if adapt_density else ("logit",)
        phi = {
            n: p if n.endswith(tuple(fixed)) and fixed else p - rates(k)[n] * g
            for (n, p), g in zip(phi.items(), grads, strict=True)
        }
    loss = F.cross_entropy(plain_logits(net, masked(phi, choices), query.images), query.labels)
    gradient = torch.autograd.grad(loss, list(sources.values()))
    return dict(zip(sources, gradient, strict=True)), loss.detach()


CASES = {
    "default": {},
    "first-order": {"first_order": True},
    "recompute": {"recompute": True},
    "signed": {"signed": True},
    "sum": {"sparsity_gradient": "sum"},
    "boundary": {"sparsity_gradient": "boundary"},
    "edge-popup": {"edge_popup": True},
    "edge-popup-kernel": {"edge_popup": True, "granularity": "kernel"},
    "kernel": {"granularity": "kernel", "sparsity_gradient": "boundary"},
    "channel": {"granularity": "channel", "sparsity_gradient": "mean"},
    "learned-rates": {"rates": "parameter"},
    "adapt-density": {"adapt_density": True, "sparsity_gradient": "sum"},
}


@pytest.mark.parametrize("kind", ["task-aware", "vmap"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_meta_gradient_is_that_of_the_equations(kind, options):
    net, tasks = network(kind), batch(tasks=3)
    learner = MMSUP(net, inner_lr=RATE, inner_steps=STEPS, **options)
    choices = {
        "granularity": options.get("granularity", "weight"),
        "signed": options.get("signed", False),
        "gradient": options.get("sparsity_gradient", "mean"),
        "edge_popup": options.get("edge_popup", False),
    }
    first_order = options.get("first_order", False)
    expected, loss = mean_gradients(
        unrolled, net, tasks, learner, choices, first_order, options.get("adapt_density", False)
    )
    metrics = learner.meta_backward(tasks)
    torch.testing.assert_close(metrics.loss, loss)
    if learner.learned_rates is not None:
        rates = expected.pop("learned_rates.values")
        torch.testing.assert_close(learner.learned_rates.values.grad, rates)
    assert_same_gradients(net, expected)


def test_each_task_keeps_the_largest_of_its_own_weights():
    tasks = batch(tasks=3)
    learner = MMSUP(network(), inner_lr=2.0, inner_steps=STEPS, density=0.3)
    adapted = learner.adapt(tasks.support)
    masks = adapted.masks()
    assert set(masks) == set(learner.densities()) == {"blocks.0.conv", "blocks.1.conv"}
    for name, mask in masks.items():
        weight = adapted.parameters[f"{name}.weight"]
        k = round(0.3 * weight[0].numel())
        for t in range(3):
            kept = weight[t].abs().flatten().topk(k).indices
            assert mask[t].sum() == k
            assert mask[t].flatten()[kept].all()
        assert (mask != mask[:1]).any()
        assert learner.densities()[name] == pytest.approx(0.3)


def test_pruned_weights_have_no_gradient_unless_edge_popup_gives_one():
    tasks = batch()
    for edge_popup in (False, True):
        learner = MMSUP(network(), inner_lr=RATE, inner_steps=1, edge_popup=edge_popup)
        start = learner.start(1)
        gradient = learner.gradient(start, tasks.support.tasks(slice(1)))[1]
        part = learner.layout.unflatten(gradient)["blocks.0.conv.weight"]
        pruned = learner.adapted(start).masks()["blocks.0.conv"] == 0
        assert bool(part[pruned].any()) is edge_popup


def test_the_density_has_a_floor_and_is_the_logistic_above_it():
    masker = LearnedTopKMask(0.25)
    assert masker.kept().item() == pytest.approx(0.25)
    with torch.no_grad():
        masker.logit.fill_(-10)
    assert masker.kept().item() == pytest.approx(0.05)
    assert masker(torch.rand(10, 10, 1, 1)).sum() == 5


@pytest.mark.parametrize("gradient", ["mean", "sum", "boundary"])
@pytest.mark.parametrize("s", [0.06, 0.05, 0.049, 0.01])
def test_a_density_below_the_floor_has_a_gradient(s, gradient):
    learner = MMSUP(network(), inner_lr=RATE, inner_steps=1, sparsity_gradient=gradient)
    logits = [p for name, p in learner.named_parameters() if name.endswith("logit")]
    with torch.no_grad():
        for logit in logits:
            logit.fill_(math.log(s / (1 - s)))
    learner.meta_backward(batch(tasks=3))
    assert all(bool(logit.grad.abs() > 0) for logit in logits)
    kept = [float(density) for density in learner.densities().values()]
    assert kept == pytest.approx([max(s, FLOOR)] * 2)


def test_a_density_comes_back_from_below_the_floor():
    masker = LearnedTopKMask(gradient="sum")
    weight = torch.rand(4, 3, 3, 3)
    with torch.no_grad():
        masker.logit.fill_(-6)
    descent = torch.optim.Adam([masker.logit], lr=0.5)
    for _ in range(20):
        descent.zero_grad()
        (1 - masker(weight)).square().sum().backward()
        descent.step()
    assert float(masker.kept()) > 0.5


@pytest.mark.parametrize("rate", [1e10, 1e30])
def test_a_training_that_diverges_says_so(rate):
    learner = MMSUP(network().float(), inner_lr=rate, inner_steps=5)
    tasks = type(batch())(*(s._replace(images=s.images.float()) for s in batch(tasks=3)))
    with pytest.raises(FloatingPointError, match=r"MMSUP: .* (not finite|nan|inf)"):
        learner.meta_backward(tasks)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in learner.parameters())


def test_adaptation_that_diverges_says_so():
    learner = MMSUP(network(), inner_lr=1e300, inner_steps=5)
    with pytest.raises(FloatingPointError, match="density of a layer is not finite for task 0"):
        learner.adapt(batch(tasks=3).support)


def test_a_masker_of_yours_stays():
    net = network()
    mine = LearnedTopKMask(0.2, "kernel", dtype=torch.float64)
    net.blocks[0].conv.masker = mine
    MMSUP(net)
    assert net.blocks[0].conv.masker is mine
    assert isinstance(net.blocks[1].conv, MaskedConv2d)
    assert isinstance(net.blocks[1].conv.masker, LearnedTopKMask)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("edge_popup", [False, True])
def test_a_fixed_density_is_one_that_nothing_moves(density, edge_popup):
    """The meta-gradient in the weights is that of a learned density, which has the same mask."""
    found, tasks = {}, batch()
    for learned in (True, False):
        learner = MMSUP(
            network(),
            density=density,
            edge_popup=edge_popup,
            learn_density=learned,
            inner_lr=RATE,
            inner_steps=2,
        )
        learner.meta_backward(tasks)
        found[learned] = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    torch.optim.SGD(learner.parameters(), lr=1.0).step()
    assert all(s.item() == pytest.approx(density) for s in learner.densities().values())
    weights = {name: grad for name, grad in found[True].items() if "logit" not in name}
    assert found[False].keys() == weights.keys() != found[True].keys()
    for name, gradient in found[False].items():
        torch.testing.assert_close(gradient, weights[name])


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="MMSUP: expected model to be one with MaskedConv2d"):
        MMSUP(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"MMSUP: expected model to be an nn\.Module"):
        MMSUP(len)
    for options, message in (
        ({"density": 1.0}, "MMSUP: expected density to be below 1, got 1.0"),
        ({"sparsity_gradient": "max"}, "MMSUP: expected sparsity_gradient to be one of"),
        ({"granularity": "row"}, "MMSUP: expected granularity to be one of"),
        (
            {"adapt_density": True, "learn_density": False},
            "MMSUP: expected adapt_density to be false without learn_density, got true",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            MMSUP(network(), **options)
    with pytest.raises(ValueError, match=r"floor to be at most 1.0, got 2.0"):
        LearnedTopKMask(floor=2.0)
