"""MetaDOCK's pruning iteration the way its public code computes it, with stock PyTorch.

Task by task; two passes an inner step, one for the weights and one for the scores; a pull towards
the meta-parameters after the last step; conjugate gradients on 2 v + H v / (lambda + 10), forward
and backward rebuilt for every product, the first residual included (methods: Chavan et al., CVPR
2022, supplement, and the public code; written anew).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import conjugate_gradients
from metasparse_ext.algorithms import MetaDOCK
from metasparse_ext.data import TaskBatch

Parameters = dict[str, Tensor]
_OFFSET, _DAMPING = 10.0, 1.0


def gate(scores: Tensor) -> Tensor:
    """1[sigmoid(scores) > 0.5], with the derivative of the logistic."""
    soft = scores.sigmoid()
    return (soft > 0.5).to(scores) + soft - soft.detach()


def logits(parameters: Mapping[str, Tensor], images: Tensor, *, frozen: bool) -> Tensor:
    """A strided Conv-4 by name, its masks multiplied into the weights."""
    x = images
    for block in range(4):
        prefix = f"model.blocks.{block}."
        own = {k.removeprefix(prefix): v for k, v in parameters.items() if k.startswith(prefix)}
        mask = gate(own["conv.masker.scores"])
        mask = mask.detach() if frozen else mask
        weight = own["conv.weight"] * mask[..., None, None]
        x = F.conv2d(x, weight, own["conv.bias"], stride=2, padding=1)
        x = F.batch_norm(x, None, None, own["norm.weight"], own["norm.bias"], training=True)
        x = F.relu(x)
    return F.linear(x.flatten(1), parameters["model.head.weight"], parameters["model.head.bias"])


def meta_gradient(learner: MetaDOCK, batch: TaskBatch) -> Parameters:
    """The mean meta-gradient over the tasks, by the name of the learner's parameters."""
    theta = {name: p.detach() for name, p in learner.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in theta.items()}
    for t in range(batch.support.images.shape[0]):
        support, query = ((part.images[t], part.labels[t]) for part in batch)
        one = _task_gradient(learner, theta, support, query)
        for name, value in one.items():
            total[name] += value / batch.support.images.shape[0]
    return total


def _task_gradient(
    learner: MetaDOCK, theta: Parameters, support: tuple[Tensor, ...], query: tuple[Tensor, ...]
) -> Parameters:
    phi = dict(theta)
    for _ in range(learner.inner_steps):
        slope = _two_passes(learner, phi, support)
        phi = {name: phi[name] - learner.inner_lr * slope[name] for name in phi}
    pull = learner.inner_lr * learner.lam
    phi = {name: phi[name] - pull * (phi[name] - theta[name]) for name in phi}
    return _solve(phi, support, _two_passes(learner, phi, query), learner.lam, learner.cg_steps)


def _two_passes(learner: MetaDOCK, phi: Parameters, samples: tuple[Tensor, ...]) -> Parameters:
    """Pass one: the weights, masks frozen. Pass two: the scores, with the budget's penalty."""
    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    weights = {n: v for n, v in leaves.items() if not n.endswith("scores")}
    scores = {n: v for n, v in leaves.items() if n.endswith("scores")}
    images, labels = samples
    loss = F.cross_entropy(logits(leaves, images, frozen=True), labels)
    slope = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    loss = F.cross_entropy(logits(leaves, images, frozen=False), labels) + penalty(learner, scores)
    slope |= dict(zip(scores, torch.autograd.grad(loss, list(scores.values())), strict=True))
    return {name: slope[name] for name in phi}


def penalty(learner: MetaDOCK, scores: Parameters) -> Tensor:
    flat = torch.cat([s.flatten() for s in scores.values()])
    weight = learner.budget_loss.lambda3 * int(learner.iteration) / learner.budget_loss.iterations
    excess = gate(flat).mean() - learner.budget
    return weight * excess**2 + learner.budget_loss.lambda4 * flat.abs().sum()


def _solve(
    phi: Parameters, support: tuple[Tensor, ...], b: Parameters, lam: float, steps: int
) -> Parameters:
    names = list(phi)

    def product(v: Tensor) -> Tensor:
        leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
        loss = F.cross_entropy(logits(leaves, support[0], frozen=False), support[1])
        slope = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        inner = torch.cat([g.flatten() for g in slope]) @ v
        hv = torch.autograd.grad(inner, list(leaves.values()))
        return (1 + _DAMPING) * v + torch.cat([h.flatten() for h in hv]) / (lam + _OFFSET)

    right = torch.cat([b[name].flatten() for name in names])
    x = conjugate_gradients(product, right, steps)
    parts = x.split([phi[name].numel() for name in names])
    return {n: part.view_as(phi[n]) for n, part in zip(names, parts, strict=True)}
