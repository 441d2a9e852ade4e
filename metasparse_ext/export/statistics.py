"""Batch norms that take the statistics of the batch get fixed ones, a layer for each call."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metasparse_ext._arguments import refuse

#: What else can be done with a network whose statistics cannot be fixed.
INSTEAD = "; --transductive (transductive=True) takes the statistics of the images given"


def fix_statistics(network: nn.Module, images: Tensor) -> None:
    """Fixes the statistics, in place, to those of these images (N, C, H, W).

    Each image is classified by itself then. In a graph, a norm that is called several times becomes
    a layer for each call, since each is given other numbers.

    Raises:
        ValueError: If a norm is called several times in a network that is no graph.
    """
    if isinstance(network, fx.GraphModule):
        _separate(network)
    with _measured(network) as calls:
        network(images.clone())
    for norm, statistics in calls.items():
        if len(statistics) > 1:
            expected = "one whose forward can be traced, or that calls each batch norm once"
            names = {module: name for name, module in network.named_modules()}
            got = f"{len(statistics)} calls of {names[norm]}{INSTEAD}"
            refuse("export", "the network", expected, got)
        fix(norm, *statistics[0])


def fix(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Gives a batch norm mean and variance, each (C,)."""
    like = mean if norm.weight is None else norm.weight
    norm.track_running_stats = True
    norm.running_mean, norm.running_var = mean.to(like), variance.to(like)
    norm.num_batches_tracked = torch.zeros((), dtype=torch.int64)


def _of_the_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _separate(network: fx.GraphModule) -> None:
    """Gives each further call of a norm a layer of its own, under the name and its number."""
    calls: Counter[nn.Module] = Counter()
    for node in network.graph.find_nodes(op="call_module"):
        norm = network.get_submodule(str(node.target))
        calls[norm] += 1
        if _of_the_batch(norm) and calls[norm] > 1:
            node.target = _unused(network, f"{node.target}_{calls[norm]}")
            network.add_submodule(node.target, copy.deepcopy(norm))
    network.recompile()


def _unused(network: fx.GraphModule, name: str) -> str:
    parent, _, last = name.rpartition(".")
    while hasattr(network.get_submodule(parent), last):
        last += "_"
    return f"{parent}.{last}" if parent else last


@contextmanager
def _measured(network: nn.Module) -> Generator[dict[_BatchNorm, list[tuple[Tensor, Tensor]]]]:
    """Collects mean and variance (C,) of each call of the norms meanwhile."""
    found: dict[_BatchNorm, list[tuple[Tensor, Tensor]]] = {}

    def measure(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].detach().double().transpose(0, 1).flatten(1)
        mean, variance = values.mean(1), values.var(1, correction=0)
        statistics = mean.to(given[0].dtype), variance.to(given[0].dtype)
        found.setdefault(cast("_BatchNorm", norm), []).append(statistics)

    norms = [module for module in network.modules() if _of_the_batch(module)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
