"""Whole meta-steps against peers: ``python -m benchmarks.meta_steps [--quick] [--threads N]``.

MAML is held against learn2learn where it is installed (else against the same loop over tasks
written with torch.autograd), on the same tasks, with the same weights: both sides must arrive at
the same meta-gradient before a time is reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Row, fair_process, interleave, save, verify
from metasparse_ext.algorithms import MAML
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4, FixedMask, MaskedConv2d

# Both sides are compared in float64: five float32 steps, second order, differ by 1e-3 from the
# order of summation alone.
BOUND = 1e-9


Side = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class MamlStep:
    """Five inner steps, second order, 5-way 1-shot, 15 queries a class."""

    backbone: str
    size: int
    channels: int
    width: int
    density: float
    tasks: int = 4
    steps: int = 5
    inner_lr: float = 0.05

    def network(self) -> Conv4:
        torch.manual_seed(0)
        strided = self.backbone == "strided"
        net = Conv4(self.channels, self.size, self.width, ways=5, strided=strided)
        for layer in net.modules():
            # The first layer stays whole: a channel with no kernel left is constant, and its batch
            # norm then sits on the kink of the ReLU, where rounding alone decides the gradient.
            if isinstance(layer, MaskedConv2d) and layer.in_channels == self.width:
                kept = torch.rand(layer.weight.shape[:2]) < self.density
                layer.masker = FixedMask(kept.float())
        return net

    def batch(
        self, dtype: torch.dtype, ways: int = 5, shots: int = 1, queries: int = 15
    ) -> TaskBatch:
        torch.manual_seed(1)

        def samples(each: int) -> Samples:
            shape = self.tasks, ways * each, self.channels, self.size, self.size
            images = torch.rand(shape).to(dtype)
            return Samples(
                images, torch.arange(ways).repeat_interleave(each).expand(self.tasks, -1)
            )

        return TaskBatch(samples(shots), samples(queries))


def run_maml(case: MamlStep, budget: float) -> Row:
    name = "learn2learn" if peers.HAS_LEARN2LEARN else "torch loop"
    double = _maml_sides(case, name, torch.float64)
    error = verify(str(case), *(torch.cat([g.flatten() for g in run()]) for run in double), BOUND)
    ours, peer = _maml_sides(case, name, torch.float32)
    timings = interleave({"ours": ours, name: peer}, budget=budget, most=30)
    return Row("maml", asdict(case), error, timings.pop("ours"), timings)


def _maml_sides(case: MamlStep, peer: str, dtype: torch.dtype) -> tuple[Side, Side]:
    net, batch = case.network().to(dtype), case.batch(dtype)
    twin = peers.stock_twin(net).to(dtype)
    learner = MAML(net, inner_lr=case.inner_lr, inner_steps=case.steps)
    run = peers.learn2learn_maml if peer == "learn2learn" else peers.stock_maml

    def ours() -> list[Tensor]:
        learner.zero_grad(set_to_none=True)
        learner.meta_backward(batch)
        return [p.grad for p in learner.parameters()]

    return ours, lambda: run(twin, batch, case.inner_lr, case.steps)


def maml_grid(quick: bool) -> Iterator[MamlStep]:
    shapes = [("strided", 28, 1, 64), ("strided", 32, 3, 64)]
    if not quick:
        shapes.append(("pooled", 84, 3, 32))
    for shape in shapes:
        for density in (1.0, 0.5):
            yield MamlStep(*shape, density)


def print_table(rows: list[Row], console: Console) -> None:
    table = Table(title="seconds a meta-iteration")
    for name in ("learner", "network", "density", "peer", "peer s", "ours s", "times faster"):
        table.add_column(name, justify="right")
    for row in rows:
        case, stock = row.case, row.best_stock
        network = f"{case['backbone']} Conv4-{case['width']}, {case['size']}x{case['size']}"
        table.add_row(
            row.group,
            network,
            str(case["density"]),
            stock,
            f"{row.stock[stock].median:.3f}",
            f"{row.ours.median:.3f}",
            f"{row.speedup:.2f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds, not saved")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    fair_process(options.threads)
    rows = []
    for case in maml_grid(options.quick):
        rows.append(run_maml(case, budget=2.0 if options.quick else 15.0))
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print_table(rows, Console(width=120))
    if not options.quick:
        print(f"raw results: {save(f'meta_steps-{options.threads}-threads', rows)}")


if __name__ == "__main__":
    main()
