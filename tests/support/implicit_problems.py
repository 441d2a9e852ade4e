"""Small networks with explicit Hessians, shared by the tests of the implicit layer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasparse_ext.implicit import Layout, task_losses, task_outputs
from metasparse_ext.nn import Conv4, FixedMask, MaskedConv2d, ScoreMask


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
    task_aware: bool = False

    def losses(self, shift: int = 0):
        """Per-task losses; another shift of the labels makes another problem."""
        labels = (self.labels + shift) % 3
        return task_losses(
            self.module, self.layout, self.inputs, labels, task_aware=self.task_aware
        )

    def outputs(self):
        return task_outputs(self.module, self.layout, self.inputs, task_aware=self.task_aware)


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


def conv_problem(masks: str, tasks: int = 2, seed: int = 0) -> Problem:
    """The package's own masked network, on the task axis."""
    torch.manual_seed(seed)
    module = Conv4(2, 6, 3, 3, blocks=2, dtype=torch.float64)
    for layer in module.modules():
        if isinstance(layer, MaskedConv2d) and masks == "learned":
            layer.masker = ScoreMask.like(layer.weight, low=-1.0, high=1.0)
        elif isinstance(layer, MaskedConv2d):
            layer.masker = FixedMask(torch.rand(layer.weight.shape[:2]) < 0.7)
    layout = Layout.of(module)
    start = layout.flatten(dict(module.named_parameters())).detach()
    params = start + 0.1 * torch.randn(tasks, layout.numel, dtype=torch.float64)
    inputs = torch.randn(tasks, 6, 2, 6, 6, dtype=torch.float64)
    return Problem(module, layout, params, inputs, torch.randint(3, (tasks, 6)), task_aware=True)


PROBLEMS = {"linear": mask_problem, "conv": conv_problem}


def exact_solution(matrix: Tensor, rhs: Tensor) -> Tensor:
    """matrix^-1 rhs, by NumPy: after torch.set_num_threads(2), the LU factors of torch's CPU build
    (2.13, oneMKL) of some hundreds of rows are wrong on some processors."""
    columns = np.linalg.solve(matrix.numpy(), rhs.detach().numpy()[..., None])
    return torch.from_numpy(columns[..., 0])


def dense_hessian(loss, params: Tensor) -> Tensor:
    """(T, P, P) Hessians of per-task losses, by autograd one row at a time."""
    point = params.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point).sum(), point, create_graph=True)
    rows = [
        torch.autograd.grad(gradient[:, i].sum(), point, retain_graph=True)[0]
        for i in range(params.shape[1])
    ]
    return torch.stack(rows, dim=1)


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
