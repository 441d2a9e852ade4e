"""A top-k mask whose kept fraction is learned."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require,
    require_choice,
    require_flag,
    require_number,
    require_place,
)
from metasparse_ext.nn.masks import Granularity, TopKMask
from metasparse_ext.ops import topk_mask

DensityGradient = Literal["mean", "sum", "boundary"]


class LearnedTopKMask(TopKMask):
    """Keeps the largest weights of its layer; the fraction s that it keeps is a parameter.

    s is the logistic of ``logit``, not below ``floor``. A mask is a step function of s, so its
    derivative is a choice. For a loss with gradient g_i in mask entry i, of n,

    - ``"sum"``: sum_i g_i, the straight-through one, summed as autograd sums;
    - ``"mean"``: sum_i g_i / n;
    - ``"boundary"``: n g_j with j the last entry that was kept: the derivative of the sum over
      kept entries in the number kept.

    Args:
        density: s at first, in (0, 1).
        granularity: ``"weight"``, ``"kernel"`` or ``"channel"``, as in
            :class:`~metasparse_ext.nn.TopKMask`. A kernel mask skips the kernels it prunes; of a
            weight mask nothing is skipped, since a gradient of every weight is needed.
        signed: Rank by the value instead of the magnitude.
        gradient: One of the three above.
        edge_popup: Pass each mask entry's gradient straight to the score of its weight too, so that
            pruned weights can come back on merit. Otherwise scores are constants, and a pruned
            weight comes back only when others shrink.
        floor: Least s. Below it the gradient of ``logit`` stays that of the logistic: one of zero
            would keep s there for good.
        device, dtype: Of ``logit``.

    Source: the supermask of GEMS (WACV 2023), supplement, listings 3 and 4, which leave the
        gradient of s open; edge-popup is of Ramanujan et al., CVPR 2020.
    """

    learned = True
    gradient: DensityGradient

    def __init__(
        self,
        density: float = 0.5,
        granularity: Granularity = "weight",
        *,
        signed: bool = False,
        gradient: DensityGradient = "mean",
        edge_popup: bool = False,
        floor: float = 0.05,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(density, granularity, signed=signed)
        require(0 < density < 1, "LearnedTopKMask", "density", "above 0 and below 1", density)
        require_choice("LearnedTopKMask", "gradient", gradient, DensityGradient)
        require_flag("LearnedTopKMask", "edge_popup", edge_popup)
        require_number("LearnedTopKMask", "floor", floor, least=0.0, most=1.0)
        require_place("LearnedTopKMask", device, dtype)
        self.gradient, self.edge_popup, self.floor = gradient, edge_popup, floor
        self.logit = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.logit, math.log(self.density / (1 - self.density)))

    def kept(self) -> Tensor:
        """(1,) or (T, 1): s; its derivative is that of the logistic below the floor too."""
        s = self.logit.sigmoid()
        return s.detach().clamp(min=self.floor) + (s - s.detach())

    def forward(self, weight: Tensor) -> Tensor:
        s = self.kept()
        if s.dim() == 2 and weight.dim() == 4:  # tasks that share a weight, as a frozen one
            weight = weight.expand(len(s), *weight.shape)
        scores = weight if self.signed else weight.abs()
        scores = scores if self.edge_popup else scores.detach()
        kept = s.detach().flatten()
        mask = topk_mask(scores, kept, granularity=self.granularity)
        # Zero, with a derivative.
        nothing = (s - s.detach()).reshape(*s.shape, *[1] * (mask.dim() - s.dim()))
        return mask + nothing * self._slope(scores.detach(), mask.detach(), kept)

    def _slope(self, scores: Tensor, mask: Tensor, s: Tensor) -> Tensor | float:
        """What ds does to the entries of the mask."""
        if self.gradient == "sum":
            return 1.0
        entries = math.prod(mask.shape[-4:] if mask.dim() >= 4 else mask.shape[-2:])
        if self.gradient == "mean":
            return 1.0 / entries
        units = mask.shape[-2] if self.granularity == "channel" else entries
        one_less = ((s.double() * units).round() - 1).clamp(min=0) / units
        return units * (mask - topk_mask(scores, one_less, granularity=self.granularity))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gradient={self.gradient!r}, edge_popup={self.edge_popup}"
