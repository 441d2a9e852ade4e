"""What pruning buys: seconds to adapt to a task and classify it, beside stock PyTorch's."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table
from torch import Tensor

from metasparse_ext.algorithms import MAML
from metasparse_ext.data import TaskBatch
from metasparse_ext.nn import Conv4, FixedMask, MaskedConv2d

# The adaptation that is timed: gradient steps on all weights, the masks as they are.
RATE, STEPS = 0.1, 5
_ROUNDS, _WARM_UP = 15, 3
# Of the largest logit, in float64.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Seconds:
    """Median seconds to adapt to one task and classify its queries.

    Attributes:
        ours: By this package.
        stock: By PyTorch's own operators, with the masks multiplied into the weights.
    """

    ours: float
    stock: float


def measure(networks: Mapping[str, Conv4], task: TaskBatch) -> dict[str, Seconds]:
    """Times networks of one shape on a meta-batch of one task, in turn, once their logits agree.

    Args:
        networks: By label, with their masks; left as they are.
        task: One task, on the networks' device, the CPU.

    Raises:
        ArithmeticError: If the logits in float64 are not those of stock PyTorch.
    """
    double = TaskBatch(*(part._replace(images=cast(Tensor, part.images).double()) for part in task))
    for label, net in networks.items():
        ours, stock = (run() for run in sides(net, torch.float64, double))
        error = float((ours - stock).abs().max() / stock.abs().max())
        if not error <= _TOLERANCE:
            raise ArithmeticError(f"{label}: the logits differ from PyTorch's by {error:.1g}")
    runs = [run for net in networks.values() for run in sides(net, torch.float32, task)]
    spent: list[list[float]] = [[] for _ in runs]
    for _ in range(_WARM_UP + _ROUNDS):
        for run, seconds in zip(runs, spent, strict=True):  # in turn: what slows one slows all
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    medians = [statistics.median(seconds[_WARM_UP:]) for seconds in spent]
    pairs = zip(medians[::2], medians[1::2], strict=True)
    return {label: Seconds(*pair) for label, pair in zip(networks, pairs, strict=True)}


def masked(net: Conv4, masks: Mapping[str, Tensor]) -> Conv4:
    """The network with fixed masks (O, I) by the name of the layer."""
    for name, mask in masks.items():
        layer = net.get_submodule(name)
        assert isinstance(layer, MaskedConv2d)
        layer.masker = FixedMask(mask)
    return net


def payoff_table(found: Mapping[str, Seconds], task: TaskBatch) -> Table:
    """A rich table, one row a network."""
    queries = task.query.labels.shape[1]
    shown = Table(
        title=f"One task: {STEPS} gradient steps, then {queries} images classified",
        caption="median milliseconds on one thread; equal outputs in float64 were checked first",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("", overflow="fold")
    for heading in ("metasparse_ext", "stock PyTorch, masks multiplied in", "times as fast"):
        shown.add_column(heading, justify="right")
    for label, each in found.items():
        ratio = each.stock / each.ours
        shown.add_row(label, f"{1e3 * each.ours:.1f}", f"{1e3 * each.stock:.1f}", f"{ratio:.1f}")
    return shown


def sides(
    net: Conv4, dtype: torch.dtype, task: TaskBatch, steps: int = STEPS
) -> Sequence[Callable[[], Tensor]]:
    """The same adaptation and classification by this package, and by stock PyTorch; (Q, ways)."""
    own = copy.deepcopy(net).to(dtype=dtype).requires_grad_()
    learner = MAML(own, inner_lr=RATE, inner_steps=steps)

    def ours() -> Tensor:
        with torch.no_grad():
            return learner.adapt(task.support)(task.query.images)[0]

    return ours, lambda: _stock(own, task, steps)


def _stock(net: Conv4, task: TaskBatch, steps: int) -> Tensor:
    """Gradient descent on a strided or pooled Conv-4 as PyTorch's users write it."""
    convs = [layer for layer in net.modules() if isinstance(layer, MaskedConv2d)]
    masks = [conv.masker(conv.weight)[:, :, None, None].to(conv.weight) for conv in convs]
    stride = convs[0].stride

    def logits(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        x = images
        for block, mask in enumerate(masks):
            kernels, norm = weights[f"blocks.{block}.conv.weight"], f"blocks.{block}.norm"
            x = F.conv2d(x, kernels * mask, None, stride=stride, padding=1)
            scale, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
            x = F.relu(F.batch_norm(x, None, None, scale, shift, training=True))
            x = F.max_pool2d(x, 2) if stride == (1, 1) else x
        return F.linear(x.flatten(1), weights["head.weight"], weights["head.bias"])

    # A bias before a batch norm does nothing.
    weights = {n: p.detach() for n, p in net.named_parameters() if not n.endswith("conv.bias")}
    images, queries = (cast(Tensor, part.images)[0] for part in task)
    labels = task.support.labels[0]
    for _ in range(steps):
        weights = {name: value.requires_grad_() for name, value in weights.items()}
        loss = F.cross_entropy(logits(weights, images), labels)
        slopes = torch.autograd.grad(loss, list(weights.values()))
        weights = {
            name: value.detach() - RATE * slope
            for (name, value), slope in zip(weights.items(), slopes, strict=True)
        }
    with torch.no_grad():
        return logits(weights, queries)
