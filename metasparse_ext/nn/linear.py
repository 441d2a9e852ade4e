"""The linear layer on a task axis."""

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require,
    require_flag,
    require_floating,
    require_like,
    require_place,
    require_size,
)
from metasparse_ext.ops._operands import autocast_is_on
from metasparse_ext.ops.task_linear import task_linear


class Linear(nn.Linear):
    """An ``nn.Linear`` whose weight and bias may have a leading task axis.

    Args:
        in_features, out_features, bias, device, dtype: As in ``nn.Linear``.

    Shapes: x (N, F) or (T, N, F); weight (O, F) or (T, O, F); bias (O,) or (T, O). The result is
        (N, O), and (T, N, O) as soon as one of them has T.
    """

    task_aware = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_size("Linear", "in_features", in_features)
        require_size("Linear", "out_features", out_features)
        require_flag("Linear", "bias", bias)
        require_place("Linear", device, dtype)
        super().__init__(in_features, out_features, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        require_floating("Linear", "input", input)
        x = input
        casts = autocast_is_on(x)
        require_like("Linear", "input", x, "its weight", self.weight, dtype=not casts)
        size = self.weight.shape[-1]
        require(x.shape[-1:] == (size,), "Linear", "input", f"of shape (..., {size})", x)
        if self.weight.dim() == 2 and (self.bias is None or self.bias.dim() == 1):
            return super().forward(x)
        if x.dim() == self.weight.dim() == 3 and len(x) == len(self.weight) and not casts:
            bias = None if self.bias is None else self.bias.expand(*self.weight.shape[:2])
            return task_linear(x, self.weight, bias)
        product = torch.matmul(x, self.weight.mT)
        if self.bias is None:
            return product
        return product + (self.bias.unsqueeze(-2) if self.bias.dim() == 2 else self.bias)
