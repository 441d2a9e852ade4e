"""Adapting to one task and classifying it: ``python -m benchmarks.adapt [--quick] [--threads N]``.

What a user of a trained network waits for: 10 first-order steps on 5 classes of 5 images, then 75
images classified. The peer is stock PyTorch, which multiplies the masks into the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from benchmarks.command import Group, run_benchmark
from benchmarks.harness import Row, interleave, verify
from benchmarks.meta_steps import MamlStep, random_tasks
from metasparse_ext.cli.payoff import sides
from metasparse_ext.nn import Conv4

BOUND = 1e-8
STEPS = 10
DENSITIES = (1.0, 0.5, 0.1)


@dataclass(frozen=True)
class OneTask:
    """One task, 5-way 5-shot, and a Conv-4 of which a fraction of the kernels is in use."""

    backbone: str
    size: int
    channels: int
    width: int
    density: float

    def network(self) -> Conv4:
        return MamlStep(self.backbone, self.size, self.channels, self.width, self.density).network()


def run(case: OneTask, budget: float) -> Row:
    net, image = case.network(), (case.channels, case.size, case.size)
    tasks = {dtype: random_tasks(1, 5, 15, image, dtype) for dtype in (torch.float32, torch.double)}
    ours, stock = (side() for side in sides(net, torch.double, tasks[torch.double], STEPS))
    error = verify(str(case), ours, stock, BOUND)
    ours, stock = sides(net, torch.float32, tasks[torch.float32], STEPS)
    name = "stock PyTorch"
    timings = interleave({"ours": ours, name: stock}, budget=budget, most=60)
    return Row("one_task", asdict(case), error, timings.pop("ours"), timings)


def grid(quick: bool) -> Iterator[OneTask]:
    shapes = [("strided", 28, 1, 64)]
    if not quick:
        shapes += [("strided", 32, 3, 64), ("pooled", 84, 3, 32)]
    for shape in shapes:
        for density in DENSITIES:
            yield OneTask(*shape, density)


GROUPS = {"one_task": Group(run, grid)}

if __name__ == "__main__":
    run_benchmark("adapt", __doc__.splitlines()[0], GROUPS, seconds=10.0, quick_seconds=2.0)
