"""Would one op for a whole block pay? ``python -m benchmarks.blockwise [--quick] [--threads N]``.

A norm needs every image of a channel before it can begin, so what could stay in cache between a
convolution and its norm is a few channels of all images. This takes the first block of Conv-4,
which has most of the pixels, so many channels at a time, and holds that to the package's two ops,
each of which takes all channels: forward, or backward to weights and norm. Above 1, the two ops are
faster than the fastest of the divided ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.command import Group, run_benchmark
from benchmarks.harness import Row, interleave, verify

BOUND = 1e-5
OPS = torch.ops.metasparse


@dataclass(frozen=True)
class FirstBlock:
    """The first block of Conv-4: strided, or with a 2x2 max-pool."""

    size: int
    channels: int
    width: int
    strided: bool
    tasks: int
    images: int
    backward: bool

    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, weights, and the norm's scale and shift."""
        torch.manual_seed(0)
        x = torch.randn(self.tasks, self.images, self.channels, self.size, self.size)
        weight = torch.randn(self.tasks, self.width, self.channels, 3, 3)
        return (
            x,
            weight,
            torch.rand(self.tasks, self.width) + 0.5,
            torch.randn(self.tasks, self.width),
        )

    def by(self, channels: int) -> Callable[[], list[tuple[Tensor, ...]]]:
        """The block, so many output channels at a time."""
        x, *parameters = self.operands()
        parts = list(zip(*(p.split(channels, 1) for p in parameters), strict=True))
        stride = [1 + self.strided] * 2

        def forward() -> list[tuple[Tensor, ...]]:
            results = []
            for weight, scale, shift in parts:
                y = OPS.masked_conv(x, weight, None, None, stride, [1, 1])
                norm = OPS.norm_act_pool(y, scale, shift, 1e-5, True, not self.strided, True)
                results.append((norm[0], y, *norm[1:]))
            return results

        made = forward()
        gradients = [torch.ones_like(z) for z, *_ in made]

        def backward() -> list[tuple[Tensor, ...]]:
            results = []
            for grad, (_, y, *saved), (_, scale, _) in zip(gradients, made, parts, strict=True):
                gate = (*saved, 1e-5, not self.strided, True)
                to_y, *to_norm = OPS.norm_act_pool_backward(grad, y, scale, *gate)
                to_weight = OPS.masked_conv_weight_grad(to_y, x, None, [3, 3], stride, [1, 1])
                results.append((to_weight, *to_norm))
            return results

        return backward if self.backward else forward


def run(case: FirstBlock, budget: float) -> Row:
    counts = [case.width >> halvings for halvings in range(4)]
    ways = {count: case.by(count) for count in counts}
    axis = 1 if case.backward else 2  # of weights (T, O, ...), of maps (T, N, O, ...)
    whole, *divided = (torch.cat([part[0] for part in way()], axis) for way in ways.values())
    error = max(verify(str(case), each, whole, BOUND) for each in divided)
    names: dict[str, Callable[[], object]] = {f"{count} at a time": ways[count] for count in ways}
    timings = interleave(names, budget=budget)
    ours = timings.pop(f"{case.width} at a time")
    return Row("first_block", asdict(case), error, ours, timings)


def grid(quick: bool) -> Iterator[FirstBlock]:
    shapes = [(28, 1, 64, True)]
    if not quick:
        shapes += [(32, 3, 64, True), (84, 3, 32, False)]
    for shape in shapes:
        for tasks, images in ((1, 25), (4, 25), (4, 75)):
            for backward in (False, True):
                yield FirstBlock(*shape, tasks, images, backward)


GROUPS = {"first_block": Group(run, grid)}

if __name__ == "__main__":
    run_benchmark("blockwise", __doc__.splitlines()[0], GROUPS, seconds=4.0, quick_seconds=1.0)
