"""Definition of the top-k mask."""

import torch
from torch import Tensor

from metasparse_ext.reference.straight_through import straight_through


def topk_mask(scores: Tensor, k: Tensor) -> Tensor:
    """Ones at the ``k[s]`` largest of row s, zeros elsewhere: (S, n), (S,) -> (S, n).

    Equal scores, -0.0 and +0.0 among them, rank by index, lowest first. NaN has no rank: a row that
    holds one is NaN throughout. Straight-through gradient.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    taken = torch.arange(scores.shape[1], device=k.device) < k[:, None]
    mask = torch.zeros_like(scores).scatter(1, order, taken.to(scores.dtype))
    return straight_through(
        scores, mask.masked_fill(scores.isnan().any(1, keepdim=True), torch.nan)
    )
