"""Networks that are not ours against a loop over tasks: ``python -m benchmarks.networks``.

A network of ``torch.nn``, as it is or through ``nn.sparsify``, takes one step of first-order MAML
on all tasks at once; the peer takes the same step task by task, the usual way: ``functional_call``
and stock convolutions, of weights that are multiplied by their masks where there are some. Both
must arrive at the same meta-gradient in float64 before a time is reported. The most memory that
each side used is measured in a process of its own.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.command import Group, run_benchmark
from benchmarks.harness import Row, interleave, peak_memory, verify
from benchmarks.meta_steps import random_tasks
from metasparse_ext.algorithms import MAML
from metasparse_ext.data import TaskBatch
from metasparse_ext.nn import FixedMask, MaskedConv2d, sparsify

BOUND = 1e-8
WAYS = 5


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, and a 1x1 convolution beside them where the shape changes."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.norm1 = norm(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm2 = norm(outs)
        change = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), norm(outs))
        self.shortcut = nn.Identity() if stride == 1 and ins == outs else change

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 (He et al., CVPR 2016): its layers, with batch statistics."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage in range(4):
        for block in range(2):
            outs = 64 << stage
            layers.append(ResidualBlock(channels, outs, 2 if block == 0 and stage > 0 else 1))
            channels = outs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, WAYS))


class ConvBlock12(nn.Module):
    """Three 3x3 convolutions, a 1x1 shortcut, and a 2x2 max-pool."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(n, outs, 3, padding=1, bias=False) for n in (ins, outs, outs)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([norm(outs) for _ in convs])
        self.shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, bias=False), norm(outs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k, (conv, normalize) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = normalize(conv(y))
            y = F.leaky_relu(y, 0.1) if k < 2 else y
        return F.max_pool2d(F.leaky_relu(y + self.shortcut(x), 0.1), 2)


def resnet12() -> nn.Module:
    """ResNet-12 of 64, 128, 256 and 512 channels (Lee et al., CVPR 2019, without DropBlock)."""
    sizes = [3, 64, 128, 256, 512]
    blocks = [ConvBlock12(i, o) for i, o in pairwise(sizes)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, WAYS))


def depthwise(ins: int, outs: int, stride: int) -> list[nn.Module]:
    """A depthwise and a pointwise convolution, each with batch norm and ReLU."""
    return [
        nn.Conv2d(ins, ins, 3, stride, 1, groups=ins, bias=False),
        *(norm(ins), nn.ReLU()),
        nn.Conv2d(ins, outs, 1, bias=False),
        *(norm(outs), nn.ReLU()),
    ]


def mobilenet() -> nn.Module:
    """The first nine blocks of MobileNet (Howard et al., 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), norm(32), nn.ReLU()]
    widths = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    for ins, outs, stride in widths:
        layers += depthwise(ins, outs, stride)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, WAYS))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet12": resnet12,
    "mobilenet": mobilenet,
}


@dataclass(frozen=True)
class Step:
    """First-order MAML, one inner step, 5-way 1-shot, 3 queries a class.

    ``density`` is that of the kernels; None: a network without masks.
    """

    network: str
    size: int
    tasks: int
    density: float | None
    inner_lr: float = 0.01

    def networks(self, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        """The network, its sparse twin, and the masks of weights by name, for broadcasting."""
        torch.manual_seed(0)
        net = NETWORKS[self.network]().to(dtype)
        sparse: nn.Module = copy.deepcopy(net)
        masks: dict[str, Tensor] = {}
        if self.density is None:
            return net, sparse, masks
        sparse = sparsify(sparse)
        for name, layer in sparse.named_modules():
            if isinstance(layer, MaskedConv2d):
                mask = (torch.rand(layer.weight.shape[:2]) < self.density).to(dtype)
                # No channel without a kernel, whose batch norm would sit on the kink of the ReLU.
                mask[torch.arange(len(mask)), torch.arange(len(mask)) % mask.shape[1]] = 1
                layer.masker = FixedMask(mask)
                masks[f"{name}.weight"] = mask[..., None, None]
        return net, sparse, masks

    def batch(self, dtype: torch.dtype) -> TaskBatch:
        return random_tasks(self.tasks, 1, 3, (3, self.size, self.size), dtype)

    def ours(self, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        _, sparse, _ = self.networks(dtype)
        batch = self.batch(dtype)
        learner = MAML(sparse, inner_lr=self.inner_lr, inner_steps=1, first_order=True)

        def step() -> list[Tensor]:
            learner.zero_grad(set_to_none=True)
            learner.meta_backward(batch)
            return [p.grad for p in learner.parameters()]

        return step

    def loop(self, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        net, _, masks = self.networks(dtype)
        batch, names = self.batch(dtype), [name for name, _ in net.named_parameters()]

        def loss(parameters: list[Tensor], images: Tensor, labels: Tensor) -> Tensor:
            masked = {
                n: p * masks[n] if n in masks else p for n, p in zip(names, parameters, strict=True)
            }
            return F.cross_entropy(functional_call(net, masked, (images,)), labels)

        def step() -> list[Tensor]:
            sums: list[Tensor] = []
            parameters = list(net.parameters())
            for task in range(self.tasks):
                support = loss(parameters, batch.support.images[task], batch.support.labels[task])
                slopes = torch.autograd.grad(support, parameters)
                adapted = [p - self.inner_lr * g for p, g in zip(parameters, slopes, strict=True)]
                query = loss(adapted, batch.query.images[task], batch.query.labels[task])
                gradients = torch.autograd.grad(query, adapted)
                sums = (
                    [s + g for s, g in zip(sums, gradients, strict=True)]
                    if sums
                    else list(gradients)
                )
            return [s / self.tasks for s in sums]

        return step


def run(case: Step, budget: float) -> Row:
    double = [torch.cat([g.flatten() for g in side(torch.float64)()]) for side in _sides(case)]
    error = verify(str(case), *double, BOUND)
    del double
    ours, loop = (side(torch.float32) for side in _sides(case))
    timings = interleave({"ours": ours, "loop over tasks": loop}, budget=budget, least=3, most=20)
    memory = {name: _peak_megabytes(case, name) for name in ("ours", "loop")}
    return Row("networks", asdict(case), error, timings.pop("ours"), timings, {"memory": memory})


def _sides(case: Step) -> tuple[Callable[[torch.dtype], Callable[[], list[Tensor]]], ...]:
    return case.ours, case.loop


def _peak_megabytes(case: Step, side: str) -> int:
    """The most memory resident in a process that takes two steps."""
    program = f"from benchmarks.networks import Step, peak\nprint(peak({case!r}, {side!r}))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


def peak(case: Step, side: str) -> int:
    """The most memory resident after two steps of one side, in megabytes."""
    step = getattr(case, side)(torch.float32)
    step(), step()
    return peak_memory() >> 20


def grid(quick: bool) -> Iterator[Step]:
    shapes = [("resnet18", 32, 4)]
    if not quick:
        shapes += [("resnet18", 32, 2), ("resnet18", 84, 2), ("resnet18", 84, 4)]
        shapes += [("resnet12", 84, 2), ("mobilenet", 84, 4)]
    for shape in shapes:
        for density in (None, 0.5) if quick else (None, 1.0, 0.5, 0.2, 0.1):
            yield Step(*shape, density)


GROUPS = {"step": Group(run, grid)}

if __name__ == "__main__":
    run_benchmark("networks", __doc__.splitlines()[0], GROUPS, seconds=8.0, quick_seconds=3.0)
