"""MMSUP: each task uses the largest of its adapted weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor, nn

from metasparse_ext.algorithms.maml import MAML, MAMLOptions
from metasparse_ext.nn import LearnedTopKMask, MaskedConv2d

if TYPE_CHECKING:
    from metasparse_ext.data import Samples


class MMSUP(MAML):
    """MAML on a network whose convolutions keep the top k of their weights, k being learned.

    Every convolution computes with w * m, where m keeps the fraction s of its weights that is
    largest in magnitude. The inner loop moves w, so the subnet is chosen anew at each step, for
    each task; s, one number a layer, is meta-learned. A pruned weight has no gradient, unless
    ``edge_popup`` gives it one, and comes back when others shrink.

    The public source is a supplement with listings. What it leaves open is a reconstruction: the
    ranking by magnitude, the derivative in s
    (:class:`~metasparse_ext.nn.LearnedTopKMask`), and that the inner loop leaves s alone.

    Args:
        model: A network of ``MaskedConv2d``, from images to logits. Its maskers are replaced,
            except those that are ``LearnedTopKMask`` already.
        density: The fraction that every layer keeps at first.
        granularity, signed, edge_popup: As in :class:`~metasparse_ext.nn.LearnedTopKMask`.
        sparsity_gradient: Its ``gradient``: "mean", "sum" or "boundary".
        adapt_density: Let the inner loop move the logits of s as it moves weights.
        **maml: The options of :class:`MAML`.

    Source: Pimpalkhute, Kunde, Singhal, "GEMS: Generating Efficient Meta-Subnets", WACV 2023,
        supplement, listings 3 and 4.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float = 0.5,
        granularity: str = "weight",
        signed: bool = False,
        edge_popup: bool = False,
        sparsity_gradient: str = "mean",
        adapt_density: bool = False,
        **maml: Unpack[MAMLOptions],
    ) -> None:
        if isinstance(model, nn.Module):
            masker = partial(
                LearnedTopKMask,
                density,
                granularity,
                signed=signed,
                gradient=sparsity_gradient,
                edge_popup=edge_popup,
            )
            _make_masks(model, masker)
        super().__init__(model, **maml)
        moves = torch.ones_like(self.start(1)[0])
        for name, place in self.layout.slices.items():
            if name.endswith("masker.logit") and not adapt_density:
                moves[place] = 0
        self.register_buffer("_moves", moves, persistent=False)

    def rates(self, step: int, phi: Tensor, gradient: Tensor, support: Samples) -> Tensor:
        return self._moves * super().rates(step, phi, gradient, support)

    @torch.no_grad()
    def densities(self) -> dict[str, Tensor]:
        """The fraction that each convolution keeps, by its name."""
        return {
            name: layer.masker.kept().squeeze()
            for name, layer in self.model.named_modules()
            if isinstance(layer, MaskedConv2d)
        }


def _make_masks(model: nn.Module, masker: Callable[..., LearnedTopKMask]) -> None:
    """Gives every masked convolution a learned top-k mask, where it has none."""
    layers = [layer for layer in model.modules() if isinstance(layer, MaskedConv2d)]
    if not layers:
        raise ValueError(
            "MMSUP: model has no MaskedConv2d whose weights could be ranked; "
            "metasparse_ext.nn.sparsify(model) makes them"
        )
    for layer in layers:
        if not isinstance(layer.masker, LearnedTopKMask):
            layer.masker = masker(device=layer.weight.device, dtype=layer.weight.dtype)
