"""The linear layer on a task axis."""

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """An ``nn.Linear`` whose weight and bias may have a leading task axis.

    Args:
        in_features, out_features, bias, device, dtype: As in ``nn.Linear``.

    Shapes: x (N, F) or (T, N, F); weight (O, F) or (T, O, F); bias (O,) or (T, O). The result is
        (N, O), and (T, N, O) as soon as one of them has T.
    """

    task_aware = True

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2 and (self.bias is None or self.bias.dim() == 1):
            return super().forward(x)
        if x.dim() == self.weight.dim() == 3 and self.bias is not None:
            return torch.baddbmm(self.bias.unsqueeze(-2), x, self.weight.mT)  # one op, not seven
        product = torch.matmul(x, self.weight.mT)
        if self.bias is None:
            return product
        return product + (self.bias.unsqueeze(-2) if self.bias.dim() == 2 else self.bias)
