"""What the few-shot backbones share: blocks, and a head on their last map."""

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

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

    task_aware = True
    blocks: nn.Sequential
    head: nn.Linear
    image_shape: tuple[int, int, int]
    head_input: HeadInput

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: (N, F), or (T, N, F)."""
        maps = self.blocks(x)
        return maps.mean((-2, -1)) if self.head_input == "mean" else maps.flatten(-3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-3:] != self.image_shape:
            raise ValueError(
                f"{type(self).__name__}: images must be (..., N, C, H, W) with C, H, W = "
                f"{self.image_shape}, got shape {tuple(x.shape)}"
            )
        return self.head(self.features(x))

    def extra_repr(self) -> str:
        return f"image_shape={self.image_shape}, head_input={self.head_input!r}"


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """The sides of images, which one number says of square ones."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width
