"""BMP: a small network decides, step by step, which layers a task may move."""

from __future__ import annotations

from itertools import groupby
from typing import Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require,
    require_choice,
    require_flag,
    require_number,
    require_size,
    require_tensor,
)
from metasparse_ext.algorithms.head_learner import head_name
from metasparse_ext.algorithms.maml import MAML, MAMLOptions, spread
from metasparse_ext.algorithms.records import Source
from metasparse_ext.data import Samples
from metasparse_ext.implicit import Layout
from metasparse_ext.nn.backbone import Place
from metasparse_ext.ops import binary_mask

Unit = Literal["tensor", "module"]
Emphasis = Literal["vector", "batch"]

# Images are averaged to so many positions a side.
_SIDE = 4


class BMP(MAML):
    """MAML whose inner updates a binary mask perceptron switches on and off, layer by layer.

    For the N layers of the backbone, at every inner step,

        e = [mean theta_1 ... mean theta_N, mean grad_1 ... mean grad_N]   at phi_k,
        m = 1[MLP(e * u) > 0], the gradient passing straight through,
        phi_l <- phi_l - a m_l grad_l L_support(phi_k),

    and the head moves always. So one initialization serves several distributions of tasks, each of
    which moves the layers that matter for it. The outer loop trains theta, the MLP and u; e is a
    constant, as its gradient half is in the listing. The first-order form leaves out the Hessians
    only: the mask learns in it as well.

    The public sources are a supplement with listings and a patent's abstract. What they leave open
    is a reconstruction: ALFA's perceptron, which they describe, with a binary output, and u, of
    which they give a name, the input embedding, and a use, that of "previously learned knowledge".

    Args:
        model: A network from images to logits.
        unit: What a layer is: a parameter "tensor", or a "module" with all of its own.
        hidden_layers: Hidden layers of the MLP, 2 N units each.
        initial_bias: Of its outputs, whose weights start from 0: above 0, all layers move at first,
            as in MAML.
        head: Name of the head; the last ``nn.Linear`` by default.
        through_weights: Let the meta-gradient reach theta through the weight half of e as well, as
            in ALFA's code, which has no norms there. The gates' straight-through gradient moves
            the weights whose means the perceptron sees, above all the scales of norms, whichever
            way opens or closes layers; after some thousand iterations that outweighs the loss, and
            training diverges.
        emphasis: What u is: a learned "vector", the same for all tasks, or made of each task's
            support images, the "batch", by a learned
            :class:`~metasparse_ext.algorithms.bmp.BatchEmbedding`. It starts from ones.
        **maml: The options of :class:`MAML`. A gate multiplies a learned rate.

    Attributes:
        units: Names of the layers.

    Source: Pimpalkhute, Kunde, Singhal, "GEMS: Generating Efficient Meta-Subnets", WACV 2023,
        supplement, listing 2; Baik et al., "Meta-Learning with Adaptive Hyperparameters", NeurIPS
        2020 (ALFA).
    """

    source = Source(
        paper="Pimpalkhute, Kunde, Singhal, GEMS, WACV 2023; only its supplement is public",
        exact="a binary mask on layers' inner updates, from the mean weights and gradients of the "
        "layers, by a perceptron with 2 N hidden units; straight-through",
        reconstructed="ALFA's perceptron with a binary output: its depth, the head always moves, "
        "the output layer's start, mean weights as constants; the factor of the embedding, a "
        "learned vector or one made of the support images",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        unit: Unit = "tensor",
        hidden_layers: int = 1,
        initial_bias: float = 0.1,
        head: str | None = None,
        through_weights: bool = False,
        emphasis: Emphasis = "vector",
        **maml: Unpack[MAMLOptions],
    ) -> None:
        super().__init__(model, **maml)
        require_choice(self.name, "unit", unit, Unit)
        require_size(self.name, "hidden_layers", hidden_layers)
        require_number(self.name, "initial_bias", initial_bias)
        require_choice(self.name, "emphasis", emphasis, Emphasis)
        require_flag(self.name, "through_weights", through_weights)
        self.through_weights = through_weights
        head = head_name(self, head)
        # A module's own parameters are neighbours in the buffer.
        sizes = dict(zip(self.layout.names, self.layout.sizes, strict=True))
        groups = groupby(sizes, lambda name: name if unit == "tensor" else _owner(name))
        self._sizes = {name: sum(sizes[own] for own in names) for name, names in groups}
        self._gated = [_owner(name) != head and name != head for name in self._sizes]
        self.units = tuple(n for n, gated in zip(self._sizes, self._gated, strict=True) if gated)
        wanted = "one with more parameters than those of its head"
        require(bool(self.units), self.name, "model", wanted, type(model))
        width = 2 * len(self.units)
        place: Place = {"device": self.start(1).device, "dtype": self.start(1).dtype}
        hidden = [
            layer
            for _ in range(hidden_layers)
            for layer in (nn.Linear(width, width, **place), nn.ReLU())
        ]
        last = nn.Linear(width, len(self.units), **place)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, initial_bias)
        self.perceptron = nn.Sequential(*hidden, last)
        self.emphasis: nn.Parameter | BatchEmbedding
        if emphasis == "vector":
            self.emphasis = nn.Parameter(torch.ones(width, **place))
        else:
            self.emphasis = BatchEmbedding(self._image_channels(), width, **place)

    def gates(self, phi: Tensor, gradient: Tensor, support: Samples) -> Tensor:
        """(T, N): which layers move from phi (T, P) along the support gradient (T, P)."""
        sizes = list(self._sizes.values())
        weights = phi if self.through_weights else phi.detach()
        parts = [*weights.split(sizes, -1), *gradient.split(sizes, -1)]
        embedding = [
            part.mean(-1) for part, gated in zip(parts, 2 * self._gated, strict=True) if gated
        ]
        if isinstance(self.emphasis, Tensor):
            u = self.emphasis
        else:
            u = self.emphasis(require_tensor(self.name, "support.images", support.images))
        return binary_mask(self.perceptron(torch.stack(embedding, -1) * u))

    def _lay_out_anew(self, layout: Layout) -> None:
        self._refuse_new_layout("inputs and outputs of its perceptron", layout)

    def rates(self, step: int, phi: Tensor, gradient: Tensor, support: Samples) -> Tensor:
        gates = iter(self.gates(phi, gradient, support).unbind(-1))
        columns = [next(gates) if gated else torch.ones_like(phi[:, 0]) for gated in self._gated]
        spread_gates = spread(torch.stack(columns, -1), tuple(self._sizes.values()))
        return super().rates(step, phi, gradient, support) * spread_gates

    @torch.no_grad()
    def moved_layers(self, support: Samples) -> dict[str, Tensor]:
        """Which layers adaptation moves: by name, zeros and ones (steps, T).

        Raises:
            TypeError, ValueError: as :meth:`adapt`.
        """
        phi = self.theta(support)
        gates = [phi.new_empty(0, len(phi), len(self.units))]
        for k in range(self.adapt_steps):
            gradient = self.gradient(phi, support)[1]
            gates.append(self.gates(phi, gradient, support).unsqueeze(0))
            phi = phi - self.rates(k, phi, gradient, support) * gradient
        return dict(zip(self.units, torch.cat(gates).unbind(-1), strict=True))

    def _image_channels(self) -> int:
        """Of the images: what the first convolution takes."""
        convolutions = (m for m in self.model.modules() if isinstance(m, nn.Conv2d))
        channels = next((conv.in_channels for conv in convolutions), None)
        wanted = "a network of convolutions, for emphasis='batch'"
        require(channels is not None, self.name, "model", wanted, type(self.model))
        return cast(int, channels)


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
        place: Place = {"device": device, "dtype": dtype}
        self.each = nn.Linear(channels * _SIDE**2, width, **place)
        self.whole = nn.Linear(width, width, bias=False, **place)
        nn.init.zeros_(self.whole.weight)

    def forward(self, images: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(images.flatten(0, 1), _SIDE)
        hidden = F.relu(self.each(pooled.flatten(1))).unflatten(0, images.shape[:2])
        return 1 + self.whole(hidden.mean(1))


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]
