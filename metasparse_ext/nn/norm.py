"""Batch norm with the statistics of the batch, one batch a task."""

from typing import Literal

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require_choice,
    require_flag,
    require_number,
    require_place,
    require_size,
)
from metasparse_ext.ops.norm_act_pool import ACTIVATIONS, ORDERS, norm_act_pool

Activation = Literal["relu", "none"]
Order = Literal["norm_act_pool", "norm_pool_act", "act_pool_norm"]


class _TaskNorm(nn.Module):
    """The affine parameters that both layers of this file share."""

    def __init__(
        self,
        num_features: int,
        eps: float,
        affine: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        owner = type(self).__name__
        require_size(owner, "num_features", num_features)
        require_number(owner, "eps", eps, least=0.0)
        require_flag(owner, "affine", affine)
        require_place(owner, device, dtype)
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        if affine:
            self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps:g}, affine={self.affine}"


class BatchNorm2d(_TaskNorm):
    """Batch norm over (N, H, W) of each task, by the statistics of the batch, also in evaluation.

    That is ``nn.BatchNorm2d(affine=True, momentum=1.0, track_running_stats=False)``, the batch norm
    of MAML, iMAML and MetaDOCK. Nothing is tracked, so nothing is updated in place and nothing
    leaks from one task into another. Predictions depend on the whole batch (transduction).

    Args:
        num_features: C.
        eps: Added to the variance.
        affine: Learn a scale and a shift for each channel.
        device, dtype: Of the parameters.

    Shapes: x (N, C, H, W) or (T, N, C, H, W); weight and bias (C,) or (T, C).

    Raises:
        TypeError, ValueError: an argument of another kind or out of range, named.
    """

    task_aware = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return norm_act_pool(x, self.weight, self.bias, eps=self.eps, activation="none", pool=0)


class NormActPool(_TaskNorm):
    """What follows a convolution in Conv-4, as one op: batch norm per task, activation, pool.

    Args:
        num_features: C.
        eps: Added to the variance.
        affine: Learn a scale and a shift for each channel.
        activation: "relu" or "none".
        pool: 2 for a 2x2 max-pool with stride 2, 0 for none.
        order: Which comes when, for example "norm_act_pool" (MAML), "norm_pool_act" (CAVIA,
            Reptile), "act_pool_norm" (hypertorch).
        device, dtype: Of the parameters.

    Shapes: x (N, C, H, W) or (T, N, C, H, W); weight and bias (C,) or (T, C).

    Raises:
        TypeError, ValueError: an argument of another kind or out of range, named.
    """

    activation: Activation
    order: Order

    task_aware = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: Activation = "relu",
        pool: int = 0,
        order: Order = "norm_act_pool",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device, dtype)
        require_choice("NormActPool", "activation", activation, ACTIVATIONS)
        require_choice("NormActPool", "pool", pool, (0, 2, False, True))
        require_choice("NormActPool", "order", order, ORDERS)
        self.activation, self.pool, self.order = activation, pool, order

    def forward(self, x: Tensor) -> Tensor:
        return norm_act_pool(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            activation=self.activation,
            pool=self.pool,
            order=self.order,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.activation}, pool={self.pool}, order={self.order!r}"
