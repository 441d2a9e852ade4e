"""Definition of the block after a convolution: batch norm, activation, max-pool."""

import torch
from torch import Tensor
from torch.nn import functional as F


def norm_act_pool(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "relu",
    pool: bool | int = False,
    order: str = "norm_act_pool",
) -> Tensor:
    """Defines :func:`metasparse_ext.norm_act_pool`, which documents the arguments."""
    steps = {
        "norm": lambda h: _normalise(h, weight, bias, eps),
        "act": torch.relu if activation == "relu" else lambda h: h,
        "pool": _max_pool if pool else lambda h: h,
    }
    for step in order.split("_"):
        x = steps[step](x)
    return x


def _normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Batch norm with the statistics of the batch itself: those of each task and channel."""
    variance, mean = torch.var_mean(x, dim=(-4, -2, -1), correction=0, keepdim=True)
    x = (x - mean) * torch.rsqrt(variance + eps)
    if weight is not None:
        x = x * weight[..., None, :, None, None]
    if bias is not None:
        x = x + bias[..., None, :, None, None]
    return x


def _max_pool(x: Tensor) -> Tensor:
    """2x2 windows; an odd last row or column belongs to none. Ties go to the first element."""
    pooled = F.max_pool2d(x.reshape(-1, *x.shape[-3:]), kernel_size=2)
    return pooled.reshape(*x.shape[:-3], *pooled.shape[-3:])
