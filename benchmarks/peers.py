"""Stock twins of our networks, and the meta-steps of peers on them.

A twin has the same layers from ``torch.nn`` with the same initial weights, so that both sides must
arrive at the same meta-gradient.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext.data import TaskBatch
from metasparse_ext.nn import Conv4


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


HAS_LEARN2LEARN = _is_there("learn2learn")


@cache
def learn2learn() -> ModuleType:
    """learn2learn, also where torchvision's CUDA wheel lies beside a CPU build of torch.

    That wheel cannot load its C library there, and importing it fails while it describes operators
    that the library would have defined: they are declared first. None is ever called.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        folder = Path(importlib.util.find_spec("torchvision").origin).parent
        text = (folder / "_meta_registrations.py").read_text()
        names = re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text)
        library = torch.library.Library("torchvision", "DEF")
        for name in names:
            library.define(f"{name}(Tensor x) -> Tensor")
    import learn2learn

    return learn2learn


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """So many steps on A x = right from zero, without a guard, as the official codes take them."""
    x = torch.zeros_like(right)
    r = right - product(x)
    p, rr = r, r @ r
    for _ in range(steps):
        q = product(p)
        alpha = rr / (p @ q)
        x, r = x + alpha * p, r - alpha * q
        new = r @ r
        p, rr = r + new / rr * p, new
    return x


class MaskedStockConv2d(nn.Conv2d):
    """The usual way to prune: the mask is multiplied into the weight at every call."""

    def __init__(self, layer: nn.Conv2d, mask: Tensor) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            bias=layer.bias is not None,
        )
        self.load_state_dict({k: v for k, v in layer.state_dict().items() if "masker" not in k})
        self.register_buffer("mask", mask[..., None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def stock_twin(net: Conv4) -> nn.Sequential:
    """Conv4 of ``torch.nn``'s layers: convolution, batch norm, ReLU, pool; a flattened head."""
    layers: list[nn.Module] = []
    for block in net.blocks:
        conv, norm = block.conv, block.norm
        stock = nn.BatchNorm2d(conv.out_channels, eps=norm.eps, track_running_stats=False)
        stock.load_state_dict(norm.state_dict())
        layers += [MaskedStockConv2d(conv, conv.masker(conv.weight).detach()), stock, nn.ReLU()]
        if conv.stride == (1, 1):
            layers.append(nn.MaxPool2d(2))
    head = nn.Linear(net.head.in_features, net.head.out_features)
    head.load_state_dict(net.head.state_dict())
    return nn.Sequential(*layers, nn.Flatten(), head)


def learn2learn_maml(net: nn.Module, batch: TaskBatch, inner_lr: float, steps: int) -> list[Tensor]:
    """The mean meta-gradient of MAML, second order, by learn2learn: a loop over the tasks."""
    maml = learn2learn().algorithms.MAML(net, lr=inner_lr, first_order=False)
    maml.zero_grad()
    tasks = batch.support.images.shape[0]
    for t in range(tasks):
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(
                F.cross_entropy(learner(batch.support.images[t]), batch.support.labels[t])
            )
        loss = F.cross_entropy(learner(batch.query.images[t]), batch.query.labels[t])
        (loss / tasks).backward()
    return [p.grad for p in net.parameters()]


def higher_maml(net: nn.Module, batch: TaskBatch, inner_lr: float, steps: int) -> list[Tensor]:
    """The same by higher, as its examples do it: a differentiable optimizer, task by task."""
    import higher

    net.zero_grad()
    for (images, labels), (queries, answers) in _tasks(batch):
        plain = torch.optim.SGD(net.parameters(), lr=inner_lr)
        with higher.innerloop_ctx(net, plain, copy_initial_weights=False) as (learner, optimizer):
            for _ in range(steps):
                optimizer.step(F.cross_entropy(learner(images), labels))
            loss = F.cross_entropy(learner(queries), answers)
            (loss / len(batch.support.labels)).backward()
    return [p.grad for p in net.parameters()]


def torchopt_maml(net: nn.Module, batch: TaskBatch, inner_lr: float, steps: int) -> list[Tensor]:
    """The same by TorchOpt's ``MetaSGD``: steps in place, and the network recovered after each."""
    import torchopt

    net.zero_grad()
    optimizer = torchopt.MetaSGD(net, lr=inner_lr)
    begun = [torchopt.extract_state_dict(each, by="reference") for each in (net, optimizer)]
    for (images, labels), (queries, answers) in _tasks(batch):
        for _ in range(steps):
            optimizer.step(F.cross_entropy(net(images), labels))
        loss = F.cross_entropy(net(queries), answers)
        (loss / len(batch.support.labels)).backward()
        for each, state in zip((net, optimizer), begun, strict=True):
            torchopt.recover_state_dict(each, state)
    return [p.grad for p in net.parameters()]


Pair = tuple[Tensor, Tensor]


def _tasks(batch: TaskBatch) -> Iterator[tuple[Pair, Pair]]:
    """Images and labels of the support set, and of the query set, task by task."""
    support, query = batch
    yield from zip(
        zip(support.images, support.labels, strict=True),
        zip(query.images, query.labels, strict=True),
        strict=True,
    )


Maml = Callable[[nn.Module, TaskBatch, float, int], list[Tensor]]


def installed_maml() -> dict[str, Maml]:
    """Every implementation of MAML that can be had here, by name."""
    packages = {
        "learn2learn": ("learn2learn", learn2learn_maml),
        "higher": ("higher", higher_maml),
        "TorchOpt": ("torchopt", torchopt_maml),
    }
    found = {name: maml for name, (package, maml) in packages.items() if _is_there(package)}
    return {**found, "torch.autograd": stock_maml}


def stock_maml(net: nn.Module, batch: TaskBatch, inner_lr: float, steps: int) -> list[Tensor]:
    """The same by torch.autograd alone, a loop over the tasks."""
    names = [name for name, _ in net.named_parameters()]
    theta = list(net.parameters())

    def loss(values: list[Tensor], images: Tensor, labels: Tensor) -> Tensor:
        logits = torch.func.functional_call(net, dict(zip(names, values, strict=True)), (images,))
        return F.cross_entropy(logits, labels)

    total = None
    tasks = batch.support.images.shape[0]
    for t in range(tasks):
        phi = theta
        for _ in range(steps):
            value = loss(phi, batch.support.images[t], batch.support.labels[t])
            grads = torch.autograd.grad(value, phi, create_graph=True)
            phi = [p - inner_lr * g for p, g in zip(phi, grads, strict=True)]
        value = loss(phi, batch.query.images[t], batch.query.labels[t]) / tasks
        grads = torch.autograd.grad(value, theta)
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
    return list(total)
