"""MMSUP: each task uses the largest of its adapted weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    refuse,
    require_choice,
    require_flag,
    require_number,
    require_type,
)
from metasparse_ext.algorithms.maml import MAML, MAMLOptions
from metasparse_ext.algorithms.records import Source
from metasparse_ext.algorithms.task_networks import AdaptedTasks
from metasparse_ext.data import Samples
from metasparse_ext.implicit import Layout, Linearization
from metasparse_ext.nn import LearnedTopKMask, MaskedConv2d
from metasparse_ext.nn.learned_topk import DensityGradient
from metasparse_ext.nn.masks import Granularity
from metasparse_ext.ops._operands import is_readable


class MMSUP(MAML):
    """MAML on a network whose convolutions keep the top k of their weights, k being learned.

    Every convolution computes with w * m, where m keeps the fraction s of its weights that is
    largest in magnitude. The inner loop moves w, so the subnet is chosen anew at each step, for
    each task; s, one number a layer, is meta-learned, and has a gradient at and below its floor
    too, so that it can come back from there. A pruned weight has no gradient, unless
    ``edge_popup`` gives it one, and comes back when others shrink.

    The public source is a supplement with listings. What it leaves open is a reconstruction: the
    ranking by magnitude, the derivative in s
    (:class:`~metasparse_ext.nn.LearnedTopKMask`) and that it does not vanish below the floor, and
    that the inner loop leaves s alone.

    Args:
        model: A network of ``MaskedConv2d``, from images to logits. Its maskers are replaced,
            except those that are ``LearnedTopKMask`` already.
        density: The fraction that every layer keeps at first.
        granularity, signed, edge_popup: As in :class:`~metasparse_ext.nn.LearnedTopKMask`.
        sparsity_gradient: Its ``gradient``: "mean", "sum" or "boundary".
        learn_density: Learn s; else every layer keeps ``density``, as in the source's ablation.
        adapt_density: Let the inner loop move the logits of s as it moves weights.
        **maml: The options of :class:`MAML`.

    Source: Pimpalkhute, Kunde, Singhal, "GEMS: Generating Efficient Meta-Subnets", WACV 2023,
        supplement, listings 3 and 4.
    """

    source = Source(
        paper="Pimpalkhute, Kunde, Singhal, GEMS, WACV 2023; only its supplement is public",
        exact="the top k of each convolution's adapted weights, detached scores, k learned from "
        "0.5 on",
        reconstructed="ranking by magnitude, the derivative in k, its floor of 0.05, and that the "
        "inner loop leaves k alone; each has its option but the floor",
    )

    _moves: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float = 0.5,
        granularity: Granularity = "weight",
        signed: bool = False,
        edge_popup: bool = False,
        sparsity_gradient: DensityGradient = "mean",
        learn_density: bool = True,
        adapt_density: bool = False,
        **maml: Unpack[MAMLOptions],
    ) -> None:
        require_number(self.name, "density", density, above=0, below=1)
        require_choice(self.name, "granularity", granularity, Granularity)
        require_choice(self.name, "sparsity_gradient", sparsity_gradient, DensityGradient)
        require_flag(self.name, "signed", signed)
        require_flag(self.name, "edge_popup", edge_popup)
        require_flag(self.name, "learn_density", learn_density)
        require_flag(self.name, "adapt_density", adapt_density)
        if adapt_density and not learn_density:
            refuse(self.name, "adapt_density", "false without learn_density", "true")
        require_type(self.name, "model", model, nn.Module, "an nn.Module")
        masker = partial(
            LearnedTopKMask,
            density,
            granularity,
            signed=signed,
            gradient=sparsity_gradient,
            edge_popup=edge_popup,
        )
        _make_masks(self.name, model, masker, learn_density)
        super().__init__(model, **maml)
        self.adapt_density = adapt_density
        self.register_buffer("_moves", self.start(1)[0], persistent=False)
        self._place_logits(self.layout)

    def _lay_out_anew(self, layout: Layout) -> None:
        super()._lay_out_anew(layout)
        self._place_logits(layout)

    def _place_logits(self, layout: Layout) -> None:
        """Notes where the logits of s lie, and whether the inner loop moves them."""
        slices = layout.slices.items()
        self._logits_at = [place for name, place in slices if name.endswith("masker.logit")]
        moves = self._moves.new_ones(layout.numel)
        for place in self._logits_at:
            moves[place] = float(self.adapt_density)
        self._moves = moves

    def rates(self, step: int, phi: Tensor, gradient: Tensor, support: Samples) -> Tensor:
        return self._moves * super().rates(step, phi, gradient, support)

    def adapt(self, support: Samples) -> AdaptedTasks:
        adapted = super().adapt(support)
        logits = [p for name, p in adapted.parameters.items() if name.endswith("masker.logit")]
        self._require_densities(logits)
        return adapted

    def gradient(self, phi: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        self._require_densities([phi[:, place] for place in self._logits_at])
        return super().gradient(phi, samples)

    def _linearize(self, phi: Tensor, support: Samples) -> Linearization:
        self._require_densities([phi[:, place] for place in self._logits_at])
        return super()._linearize(phi, support)

    def _require_densities(self, logits: list[Tensor]) -> None:
        """Raises on a density that is NaN, of which no number of weights can be made."""
        if not (logits and is_readable(logits[0])):
            return
        wrong = ~torch.stack([logit.isfinite().flatten(1).all(1) for logit in logits]).all(0)
        if bool(wrong.any()):
            raise FloatingPointError(
                f"MMSUP: the density of a layer is not finite for task {int(wrong.nonzero()[0])} "
                f"in iteration {int(self.iteration)}; a smaller inner_lr or meta learning rate "
                "usually helps"
            )

    @torch.no_grad()
    def densities(self) -> dict[str, Tensor]:
        """The fraction that each convolution keeps, by its name."""
        return {
            name: layer.masker.kept().squeeze()
            for name, layer in self.model.named_modules()
            if isinstance(layer, MaskedConv2d) and isinstance(layer.masker, LearnedTopKMask)
        }


def _make_masks(
    owner: str, model: nn.Module, masker: Callable[..., LearnedTopKMask], learned: bool
) -> None:
    """Gives every masked convolution a learned top-k mask, where it has none."""
    layers = [layer for layer in model.modules() if isinstance(layer, MaskedConv2d)]
    if not layers:
        wanted = "one with MaskedConv2d, whose weights are ranked"
        refuse(owner, "model", wanted, f"{type(model).__name__}; nn.sparsify(model) makes them")
    for layer in layers:
        if not isinstance(layer.masker, LearnedTopKMask):
            layer.masker = masker(device=layer.weight.device, dtype=layer.weight.dtype)
            layer.masker.logit.requires_grad_(learned)
