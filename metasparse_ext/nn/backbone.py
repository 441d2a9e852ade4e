"""What the few-shot backbones share: blocks, and a head on their last map."""

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    require_choice,
    require_floating,
    require_place,
    require_shape,
    require_size,
)

HeadInput = Literal["flatten", "mean"]


class Place(TypedDict):
    """Where parameters are made, and of what type: keyword arguments of layers."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class Backbone(nn.Module):
    """A network from images to logits, for one task or for T side by side.

    Attributes:
        blocks: From images to maps.
        head: From features to logits.
        image_shape: (C, H, W) of the images.
        head_input: "flatten" feeds the head the whole last map, "mean" its spatial mean.

    Shapes: images (N, C, H, W) to logits (N, ways), and (T, N, C, H, W) to (T, N, ways).

    Raises:
        ValueError: if the images have another shape.
    """

    blocks: nn.Sequential
    head: nn.Linear
    image_shape: tuple[int, int, int]
    head_input: HeadInput

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: (N, F), or (T, N, F)."""
        owner = type(self).__name__
        require_floating(owner, "x", x)
        require_shape(owner, "x", x, ("N", *self.image_shape), ("T", "N", *self.image_shape))
        maps = self.blocks(x)
        return maps.mean((-2, -1)) if self.head_input == "mean" else maps.flatten(-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def extra_repr(self) -> str:
        return f"image_shape={self.image_shape}, head_input={self.head_input!r}"


def check_options(
    owner: str, in_channels: int, ways: int, head: str, device: object, dtype: object
) -> None:
    """What every backbone asks of the arguments that they share."""
    require_size(owner, "in_channels", in_channels)
    require_size(owner, "ways", ways)
    require_choice(owner, "head", head, HeadInput)
    require_place(owner, device, dtype)
