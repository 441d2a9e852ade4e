"""The ops against the fastest stock way: ``python -m benchmarks.ops [--quick] [--threads N]``.

Stock means what a user of PyTorch would write: the convolution of a premultiplied weight in both
memory formats, a loop, a grouped convolution or vmap for several tasks; ``torch.topk`` and scatter;
batch norm, ReLU and max-pool one after another. Both sides produce a fresh output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import metasparse_ext as ms
from benchmarks import depthwise
from benchmarks.command import Group, run_benchmark
from benchmarks.harness import Row, interleave, verify

BOUND = 1e-5
DENSITIES = (1.0, 0.5, 0.2, 0.1)


@dataclass(frozen=True)
class Conv:
    """A masked 3x3 convolution with padding 1."""

    op: str
    tasks: int
    samples: int
    in_channels: int
    out_channels: int
    size: int
    stride: int
    density: float

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, weight, mask and a gradient of the output."""
        generator = torch.Generator().manual_seed(0)
        t, n, i, o = self.tasks, self.samples, self.in_channels, self.out_channels
        out = (self.size - 1) // self.stride + 1
        x = torch.randn(t, n, i, self.size, self.size, generator=generator)
        weight = torch.randn(t, o, i, 3, 3, generator=generator) / (3 * i**0.5)
        mask = (torch.rand(t, o, i, generator=generator) < self.density).float()
        return x, weight, mask, torch.randn(t, n, o, out, out, generator=generator)


def run_conv(case: Conv, budget: float) -> Row:
    x, weight, mask, grad = case.tensors()
    effective = weight * mask[..., None, None]
    ours = our_conv(case, x, weight, mask, grad)
    stock = dict(stock_conv(case, x, effective, grad))
    expected = definition(case, x.double(), effective.double(), grad.double())
    if case.op == "weight gradient":
        expected = expected * mask[..., None, None]
    error = verify(str(case), ours(), expected, BOUND)
    timings = interleave({"ours": ours, **stock}, budget=budget)
    return Row("conv", asdict(case), error, timings.pop("ours"), timings)


def our_conv(case: Conv, x, weight, mask, grad) -> Callable[[], Tensor]:
    ops, window = torch.ops.metasparse, ([case.stride] * 2, [1, 1])
    size = [case.size] * 2
    return {
        "forward": lambda: ops.masked_conv(x, weight, mask, None, *window),
        "input gradient": lambda: ops.masked_conv_input_grad(grad, weight, mask, size, *window),
        "weight gradient": lambda: ops.masked_conv_weight_grad(grad, x, mask, [3, 3], *window),
        "dense weight gradient": lambda: ops.masked_conv_weight_grad(
            grad, x, None, [3, 3], *window
        ),
    }[case.op]


def _one(case: Conv, x: Tensor, w: Tensor, g: Tensor, groups: int = 1) -> Tensor:
    """PyTorch's own op, on 4-D tensors."""
    if case.op == "forward":
        return F.conv2d(x, w, stride=case.stride, padding=1, groups=groups)
    wanted = [case.op == "input gradient", "weight" in case.op, False]
    gx, gw, _ = torch.ops.aten.convolution_backward(
        g, x, w, None, [case.stride] * 2, [1, 1], [1, 1], False, [0, 0], groups, wanted
    )
    return gx if wanted[0] else gw


def definition(case: Conv, x: Tensor, w: Tensor, g: Tensor) -> Tensor:
    return torch.stack([_one(case, *task) for task in zip(x, w, g, strict=True)])


def stock_conv(case: Conv, x, w, g) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    if case.tasks == 1:
        yield "contiguous", lambda: _one(case, x[0], w[0], g[0])
        last = [t[0].to(memory_format=torch.channels_last) for t in (x, w, g)]
        yield "channels last", lambda: _one(case, *last)
        return
    yield "loop", lambda: definition(case, x, w, g)
    # Grouped: the tasks' channels side by side; laid out beforehand, which favours this variant.
    xg, gg = (t.transpose(0, 1).flatten(1, 2).contiguous() for t in (x, g))
    yield "grouped", lambda: _one(case, xg, w.flatten(0, 1), gg, groups=case.tasks)
    yield "vmap", lambda: torch.func.vmap(lambda *task: _one(case, *task))(x, w, g)


class MovingMask(Conv):
    """A convolution whose mask is another at every call, as where scores are learned."""

    #: Calls before the masks come again, and the part of the kernels that is drawn anew for each.
    MASKS, REDRAWN = 32, 0.02

    def masks(self, first: Tensor) -> list[Tensor]:
        """Masks of the same density, more or less, each a little different from the last."""
        generator, masks = torch.Generator().manual_seed(1), [first]
        for _ in range(self.MASKS - 1):
            redrawn = torch.rand(first.shape, generator=generator) < self.REDRAWN
            drawn = (torch.rand(first.shape, generator=generator) < self.density).float()
            masks.append(torch.where(redrawn, drawn, masks[-1]))
        return masks


def run_moving(case: MovingMask, budget: float) -> Row:
    """Beside the stock ways, ours with a mask that stays, and with all kernels, as ``more``."""
    x, weight, mask, grad = case.tensors()
    ways = [our_conv(case, x, weight, each, grad) for each in case.masks(mask)]
    effective = weight * mask[..., None, None]
    expected = definition(case, x.double(), effective.double(), grad.double())
    if case.op == "weight gradient":
        expected = expected * mask[..., None, None]
    error = verify(str(case), ways[0](), expected, BOUND)
    turn = itertools.cycle(ways)
    others = {
        "a mask that stays": ways[0],
        "all kernels": our_conv(case, x, weight, torch.ones_like(mask), grad),
    }
    stock = dict(stock_conv(case, x, effective, grad))
    timings = interleave({"ours": lambda: next(turn)(), **others, **stock}, budget=budget)
    more: dict[str, object] = {name: timings.pop(name).median for name in others}
    ours = timings.pop("ours")
    return Row("moving", asdict(case), error, ours, timings, more)


@dataclass(frozen=True)
class Block:
    """Batch norm, ReLU and, where ``pool``, a 2x2 max-pool."""

    op: str
    tasks: int
    samples: int
    channels: int
    size: int
    pool: bool


def run_block(case: Block, budget: float) -> Row:
    ours, stock = block_sides(case)
    error = verify(str(case), ours(), stock(), 1e-4)
    timings = interleave({"ours": ours, "unfused": stock}, budget=budget)
    return Row("block", asdict(case), error, timings.pop("ours"), timings)


def block_sides(case: Block, device: str = "cpu") -> tuple[Callable[[], Tensor], ...]:
    """Ours, and the layers one after another."""
    generator = torch.Generator().manual_seed(0)
    t, n, c = case.tasks, case.samples, case.channels
    x = torch.randn(t, n, c, case.size, case.size, generator=generator)
    weight, bias = torch.rand(t, c, generator=generator), torch.randn(t, c, generator=generator)
    out = case.size // 2 if case.pool else case.size
    grad = torch.randn(t, n, c, out, out, generator=generator)
    x, weight, bias, grad = (tensor.to(device) for tensor in (x, weight, bias, grad))

    def stock_block(x, weight, bias):
        def one(x, weight, bias):
            y = F.relu(F.batch_norm(x, None, None, weight, bias, training=True))
            return F.max_pool2d(y, 2) if case.pool else y

        return torch.stack([one(*task) for task in zip(x, weight, bias, strict=True)])

    def our_block(x, weight, bias):
        return ms.norm_act_pool(x, weight, bias, pool=case.pool)

    def call(block):
        if case.op == "forward":
            return lambda: block(x, weight, bias)

        def forward_backward():
            leaves = [arg.detach().requires_grad_() for arg in (x, weight, bias)]
            return torch.autograd.grad(block(*leaves), leaves, grad)[0]

        return forward_backward

    return call(our_block), call(stock_block)


@dataclass(frozen=True)
class TopK:
    weights: int
    density: float


def run_topk(case: TopK, budget: float) -> Row:
    ours, stock = topk_sides(case)
    error = verify(str(case), ours(), stock(), 0.0)
    timings = interleave({"ours": ours, "topk and scatter": stock}, budget=budget)
    return Row("topk_mask", asdict(case), error, timings.pop("ours"), timings)


def topk_sides(case: TopK, device: str = "cpu") -> tuple[Callable[[], Tensor], ...]:
    """Ours, and ``torch.topk`` with a scatter."""
    scores = torch.randn(case.weights, generator=torch.Generator().manual_seed(0)).to(device)
    k = round(case.density * case.weights)

    def stock():
        return torch.zeros_like(scores).scatter_(0, torch.topk(scores, k).indices, 1.0)

    return lambda: ms.topk_mask(scores, case.density), stock


CONV_OPS = ("forward", "input gradient", "weight gradient")


def conv_grid(quick: bool) -> Iterator[Conv]:
    """The shapes of few-shot backbones; the quick grid is a sample of the whole one."""
    densities = (1.0, 0.5) if quick else DENSITIES
    stride_1 = (42, 14) if quick else (84, 42, 28, 21, 14, 10, 7)
    stride_2 = (32, 16, 8) if quick else (84, 42, 32, 28, 21, 16, 14, 11, 8, 7, 4)
    for op in CONV_OPS:
        for density in densities:
            for size in stride_1:
                yield Conv(op, 1, 25, 64, 64, size, 1, density)
            for size in stride_2:
                yield Conv(op, 1, 25, 64, 64, size, 2, density)
            if quick:
                continue
            for size in (42, 32, 16):
                yield Conv(op, 1, 25, 128, 128, size, 1, density)
            for size in (32, 16):
                yield Conv(op, 1, 25, 128, 128, size, 2, density)
            for size in (28, 14, 7):
                yield Conv(op, 1, 5, 64, 64, size, 1, density)
                yield Conv(op, 1, 75, 64, 64, size, 1, density)
            for samples in (5, 25):
                for size in (32, 16, 8, 4):
                    yield Conv(op, 4, samples, 64, 64, size, 2, density)
                for size in (28, 14, 7):
                    yield Conv(op, 4, samples, 64, 64, size, 1, density)
    for size, stride in ((42, 1), (32, 2)) if quick else ((84, 1), (42, 1), (28, 1), (14, 1)):
        yield Conv("dense weight gradient", 1, 25, 64, 64, size, stride, 1.0)
    if not quick:
        for size in (84, 32, 16, 8):
            yield Conv("dense weight gradient", 1, 25, 64, 64, size, 2, 1.0)
            yield Conv("dense weight gradient", 4, 25, 64, 64, size, 2, 1.0)
    for op in CONV_OPS[::2]:
        for channels, size, stride in ((1, 28, 2), (3, 32, 2), (3, 84, 1)):
            yield Conv(op, 1, 25, channels, 64, size, stride, 1.0)


def deep_grid(quick: bool) -> Iterator[Conv]:
    """The last stages of residual networks: many channels on maps of few pixels."""
    for op, density in itertools.product(CONV_OPS, (1.0, 0.1) if quick else (1.0, 0.5, 0.1)):
        for channels in (128,) if quick else (128, 256, 512):
            for tasks, samples in ((4, 5),) if quick else ((1, 5), (1, 25), (4, 5), (4, 25)):
                for size, stride in itertools.product((8, 4, 2), (1, 2)):
                    yield Conv(op, tasks, samples, channels, channels, size, stride, density)


def moving_grid(quick: bool) -> Iterator[MovingMask]:
    """The layers of MetaDOCK's network, half of the kernels in use."""
    for op in CONV_OPS:
        for channels, size in ((64, 8),) if quick else ((3, 32), (64, 16), (64, 8), (64, 4)):
            if (op, channels) != ("input gradient", 3):
                yield MovingMask(op, 4, 25, channels, 64, size, 2, 0.5)


def block_grid(quick: bool) -> Iterator[Block]:
    for op in ("forward", "forward and backward"):
        for pool in (False, True):
            for size in (28,) if quick else (84, 42, 28, 14):
                yield Block(op, 1, 25, 64, size, pool)
            yield Block(op, 4, 25, 64, 16, pool)


def topk_grid(quick: bool) -> Iterator[TopK]:
    for weights in (112_000,) if quick else (112_000, 1_000_000, 12_000_000):
        yield TopK(weights, 0.5)


GROUPS = {
    "conv": Group(run_conv, conv_grid),
    "deep": Group(run_conv, deep_grid),
    "moving": Group(run_moving, moving_grid),
    "depthwise": Group(depthwise.run, depthwise.grid),
    "block": Group(run_block, block_grid),
    "topk_mask": Group(run_topk, topk_grid),
}

if __name__ == "__main__":
    run_benchmark(
        "ops", __doc__.splitlines()[0], GROUPS, seconds=0.75, quick_seconds=0.15, passes=3
    )
