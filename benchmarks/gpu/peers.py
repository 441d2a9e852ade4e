"""Meta-gradients as others would compute them: loops of torch.autograd, and torch.func.vmap.

Each returns the mean over the tasks in the order of ``net.parameters()``. Loops of MAML and of
MetaDOCK are in :mod:`benchmarks.peers` and :mod:`benchmarks.metadock_peer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from benchmarks.peers import conjugate_gradients
from metasparse_ext.data import TaskBatch

Parameters = dict[str, Tensor]
Loss = Callable[[Parameters, Tensor, Tensor], Tensor]


def loss_of(net: nn.Module) -> Loss:
    """Cross-entropy of a network as a function of its parameters."""
    return lambda parameters, images, labels: F.cross_entropy(
        functional_call(net, parameters, (images,)), labels
    )


def over_tasks(
    one_task: Callable[..., Parameters], theta: Parameters, batch: TaskBatch
) -> list[Tensor]:
    """The mean of a task's meta-gradient, by vmap over the tasks."""
    tasks = (*batch.support[:2], *batch.query[:2])
    found = vmap(one_task, in_dims=(None, 0, 0, 0, 0))(theta, *tasks)
    return [found[name].mean(0) for name in theta]


def parameters_of(net: nn.Module) -> Parameters:
    return {name: p.detach() for name, p in net.named_parameters()}


def vmap_maml(net: nn.Module, batch: TaskBatch, inner_lr: float, steps: int) -> list[Tensor]:
    """Second-order MAML."""
    loss = loss_of(net)

    def one_task(theta, images, labels, queries, answers):
        def outer(theta):
            phi = theta
            for _ in range(steps):
                slope = grad(loss)(phi, images, labels)
                phi = {name: phi[name] - inner_lr * slope[name] for name in phi}
            return loss(phi, queries, answers)

        return grad(outer)(theta)

    return over_tasks(one_task, parameters_of(net), batch)


@dataclass(frozen=True)
class Implicit:
    """iMAML as its official code has it.

    Descent, one pull back, and conjugate gradients on 2 I + H / (lambda + 10), whose first residual
    is computed too.
    """

    inner_lr: float
    steps: int
    lam: float
    cg_steps: int

    def loop(self, net: nn.Module, batch: TaskBatch) -> list[Tensor]:
        """Task by task, every curvature product from scratch."""
        names, theta = zip(*net.named_parameters(), strict=True)
        loss = loss_of(net)
        total = [torch.zeros_like(p) for p in theta]
        for images, labels, queries, answers in zip(
            *batch.support[:2], *batch.query[:2], strict=True
        ):

            def slope(phi, x, y, *, create_graph=False):
                value = loss(dict(zip(names, phi, strict=True)), x, y)
                return torch.autograd.grad(value, phi, create_graph=create_graph)

            def leaves(phi):
                return [p.detach().requires_grad_() for p in phi]

            phi = leaves(theta)
            for _ in range(self.steps):
                found = slope(phi, images, labels)
                phi = leaves(p - self.inner_lr * g for p, g in zip(phi, found, strict=True))
            pull = self.inner_lr * self.lam
            phi = leaves(p - pull * (p - t) for p, t in zip(phi, theta, strict=True))

            def product(v, phi=phi, x=images, y=labels):
                found = torch.cat([g.flatten() for g in slope(phi, x, y, create_graph=True)])
                curved = torch.autograd.grad(found @ v, phi)
                return self._matrix(v, torch.cat([c.flatten() for c in curved]))

            right = torch.cat([g.flatten() for g in slope(phi, queries, answers)])
            solution = conjugate_gradients(product, right, self.cg_steps)
            parts = solution.split([p.numel() for p in phi])
            for sum_, part in zip(total, parts, strict=True):
                sum_ += part.view_as(sum_) / len(batch.support.images)
        return total

    def vmap(
        self, loss: Loss, theta: Parameters, batch: TaskBatch, penalised: Loss | None = None
    ) -> list[Tensor]:
        """All tasks together by torch.func; the curvature is that of the loss without penalty."""
        penalised = penalised or loss

        def one_task(theta, images, labels, queries, answers):
            phi = theta
            for _ in range(self.steps):
                found = grad(penalised)(phi, images, labels)
                phi = {name: phi[name] - self.inner_lr * found[name] for name in phi}
            pull = self.inner_lr * self.lam
            phi = {name: phi[name] - pull * (phi[name] - theta[name]) for name in phi}
            right = grad(penalised)(phi, queries, answers)
            _, transposed = vjp(lambda phi: grad(loss)(phi, images, labels), phi)

            def flat(named):
                return torch.cat([named[name].flatten() for name in theta])

            def named(vector):
                parts = vector.split([value.numel() for value in theta.values()])
                return {n: p.view_as(theta[n]) for n, p in zip(theta, parts, strict=True)}

            def product(v):
                return self._matrix(v, flat(transposed(named(v))[0]))

            return named(conjugate_gradients(product, flat(right), self.cg_steps))

        return over_tasks(one_task, theta, batch)

    def _matrix(self, v: Tensor, curved: Tensor) -> Tensor:
        return 2 * v + curved / (self.lam + 10)


def vmap_head(net: nn.Sequential, batch: TaskBatch, rate: float, steps: int) -> list[Tensor]:
    """ANIL: gradient descent on the last layer alone, differentiated through every step."""
    backbone, head = net[:-1], net[-1]
    own = {f"{len(net) - 1}.{name}" for name, _ in head.named_parameters()}

    def one_task(theta, images, labels, queries, answers):
        def outer(theta):
            body = {name: value for name, value in theta.items() if name not in own}
            features = functional_call(backbone, body, (images,))
            phi = {name: theta[name] for name in own}

            def loss(phi, features, labels):
                weight, bias = (phi[f"{len(net) - 1}.{name}"] for name in ("weight", "bias"))
                return F.cross_entropy(F.linear(features, weight, bias), labels)

            for _ in range(steps):
                slope = grad(loss)(phi, features, labels)
                phi = {name: phi[name] - rate * slope[name] for name in phi}
            return loss(phi, functional_call(backbone, body, (queries,)), answers)

        return grad(outer)(theta)

    return over_tasks(one_task, parameters_of(net), batch)
