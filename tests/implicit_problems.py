"""Small networks with explicit Hessians, shared by the tests of the implicit layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasparse_ext.implicit import Layout, task_losses, task_outputs


class Gated(nn.Module):
    """A linear layer whose inputs are gated by a mask, learned (straight-through) or frozen."""

    def __init__(self, inputs: int, outputs: int, *, learned: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        scores = torch.randn(outputs, inputs)
        if learned:
            self.scores = nn.Parameter(scores)
        else:
            self.register_buffer("mask", (scores > 0).to(scores.dtype))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "mask"):
            mask = self.mask
        else:
            gate = self.scores.sigmoid()
            mask = gate + ((gate > 0.5).to(gate.dtype) - gate).detach()
        return F.linear(x, self.weight * mask)


class Problem(NamedTuple):
    module: nn.Module
    layout: Layout
    params: Tensor
    inputs: Tensor
    labels: Tensor

    def losses(self, shift: int = 0):
        """Per-task losses; another shift of the labels makes another problem."""
        labels = (self.labels + shift) % 3
        return task_losses(self.module, self.layout, self.inputs, labels)

    def outputs(self):
        return task_outputs(self.module, self.layout, self.inputs)


def mask_problem(masks: str, tasks: int = 3, seed: int = 0) -> Problem:
    """A two-layer network in float64 with masks ``"learned"`` or ``"frozen"``."""
    torch.manual_seed(seed)
    learned = masks == "learned"
    module = nn.Sequential(
        Gated(4, 5, learned=learned), nn.Tanh(), Gated(5, 3, learned=learned)
    ).double()
    layout = Layout.of(module)
    start = layout.flatten(dict(module.named_parameters())).detach()
    params = start + 0.3 * torch.randn(tasks, layout.numel, dtype=torch.float64)
    inputs = torch.randn(tasks, 7, 4, dtype=torch.float64)
    return Problem(module, layout, params, inputs, torch.randint(3, (tasks, 7)))


def dense_hessian(loss, params: Tensor) -> Tensor:
    """(T, P, P) Hessians of per-task losses, by autograd one row at a time."""
    full = torch.autograd.functional.hessian(lambda p: loss(p).sum(), params)
    return torch.stack([full[t, :, t] for t in range(params.shape[0])])


def dense_ggn(outputs, loss, params: Tensor) -> Tensor:
    """(T, P, P) matrices J' L'' J, from explicit Jacobians and output Hessians."""
    tasks = params.shape[0]
    values = outputs(params).detach()
    jacobian = torch.autograd.functional.jacobian(outputs, params)
    curvature = torch.autograd.functional.hessian(lambda z: loss(z).sum(), values)
    blocks = []
    for t in range(tasks):
        size = values[t].numel()
        j = jacobian[t, ..., t, :].reshape(size, -1)
        blocks.append(j.T @ curvature[t, :, :, t].reshape(size, size) @ j)
    return torch.stack(blocks)
