"""Depthwise convolutions of tasks against PyTorch's: a group of :mod:`benchmarks.ops`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Row, interleave, verify

BOUND = 1e-5


@dataclass(frozen=True)
class Depthwise:
    """Each channel sees itself alone, through a square kernel; padded to keep the size."""

    op: str
    tasks: int
    samples: int
    channels: int
    size: int
    kernel: int
    stride: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight and a gradient of the output."""
        generator = torch.Generator().manual_seed(0)
        lead, out = (self.tasks, self.samples, self.channels), (self.size - 1) // self.stride + 1
        x = torch.randn(*lead, self.size, self.size, generator=generator)
        taps = (1, self.kernel, self.kernel)
        weight = torch.randn(self.tasks, self.channels, *taps, generator=generator) / self.kernel
        return x, weight, torch.randn(*lead, out, out, generator=generator)


def run(case: Depthwise, budget: float) -> Row:
    x, weight, grad = case.tensors()
    ours, stock = _ours(case, x, weight, grad), dict(_stock(case, x, weight, grad))
    expected = _by_task(case, x.double(), weight.double(), grad.double())
    error = verify(str(case), ours(), expected, BOUND)
    timings = interleave({"ours": ours, **stock}, budget=budget)
    return Row("depthwise", asdict(case), error, timings.pop("ours"), timings)


def _ours(case: Depthwise, x: Tensor, weight: Tensor, grad: Tensor) -> Callable[[], Tensor]:
    ops, padding = torch.ops.metasparse, case.kernel // 2
    window = ([case.stride] * 2, [padding] * 2)
    size, taps = [case.size] * 2, [case.kernel] * 2
    return {
        "forward": lambda: ops.depthwise_conv(x, weight, *window),
        "input gradient": lambda: ops.depthwise_conv_input_grad(grad, weight, size, *window),
        "weight gradient": lambda: ops.depthwise_conv_weight_grad(grad, x, taps, *window),
    }[case.op]


def _stock(case: Depthwise, x, weight, grad) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    yield "loop", lambda: _by_task(case, x, weight, grad)
    # The tasks' channels side by side; laid out beforehand, which favours this variant.
    beside, grad_beside = (t.transpose(0, 1).flatten(1, 2).contiguous() for t in (x, grad))
    yield "grouped", lambda: _one(case, beside, weight.flatten(0, 1), grad_beside)


def _by_task(case: Depthwise, x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    return torch.stack([_one(case, *task) for task in zip(x, weight, grad, strict=True)])


def _one(case: Depthwise, x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """PyTorch's own op, on 4-D tensors."""
    padding, groups = case.kernel // 2, len(weight)
    if case.op == "forward":
        return F.conv2d(x, weight, None, case.stride, padding, groups=groups)
    wanted = [case.op == "input gradient", case.op == "weight gradient", False]
    window = ([case.stride] * 2, [padding] * 2, [1, 1])
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *window, False, [0, 0], groups, wanted
    )
    return gradients[0] if wanted[0] else gradients[1]


def grid(quick: bool) -> Iterator[Depthwise]:
    """The layers of separable networks on few-shot images."""
    layers = ((32, 42, 3, 1), (64, 42, 3, 2), (128, 21, 3, 1), (128, 21, 3, 2))
    layers += ((256, 11, 3, 1), (512, 6, 3, 1), (96, 21, 5, 1), (96, 21, 7, 1))
    ops = ("forward", "input gradient", "weight gradient")
    for op, layer in itertools.product(ops, layers[:1] if quick else layers):
        for tasks, samples in ((4, 5),) if quick else ((1, 25), (4, 5), (4, 25)):
            yield Depthwise(op, tasks, samples, *layer)
