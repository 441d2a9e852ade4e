"""Definition of the linear layer of tasks."""

import torch
from torch import Tensor


def task_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (T, N, F) times the transposed weight (T, O, F), plus bias (T, O): (T, N, O)."""
    product = torch.bmm(x, weight.mT)
    return product if bias is None else product + bias.unsqueeze(1)
