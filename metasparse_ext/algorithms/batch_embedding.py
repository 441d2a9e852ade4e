"""A learned vector of a set of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Images are averaged to so many positions a side.
_SIDE = 4


class BatchEmbedding(nn.Module):
    """1 + B mean_n ReLU(A x_n + a): the images x_n of each task as one vector, in any order.

    B starts from zero, and so every vector from ones.

    Args:
        channels: C of the images, which are averaged to 4 x 4 positions.
        width: K, the length of the vector, and of the hidden layer.
        device, dtype: Of the parameters.

    Shapes: images (T, N, C, H, W) to (T, K).

    Source: the form is that of Deep Sets (Zaheer et al., NeurIPS 2017).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place = {"device": device, "dtype": dtype}
        self.each = nn.Linear(channels * _SIDE**2, width, **place)
        self.whole = nn.Linear(width, width, bias=False, **place)
        nn.init.zeros_(self.whole.weight)

    def forward(self, images: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(images.flatten(0, 1), _SIDE)
        hidden = F.relu(self.each(pooled.flatten(1))).unflatten(0, images.shape[:2])
        return 1 + self.whole(hidden.mean(1))
