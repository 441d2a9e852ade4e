"""Definition of the binary mask."""

from torch import Tensor

from metasparse_ext.reference.straight_through import straight_through


def binary_mask(scores: Tensor, threshold: float = 0.0) -> Tensor:
    """1 where scores > threshold, else 0, NaN included; same dtype, straight-through gradient."""
    return straight_through(scores, (scores > threshold).to(scores.dtype))
