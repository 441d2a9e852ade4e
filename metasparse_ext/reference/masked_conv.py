"""Definition of the masked convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """conv2d with kernels ``weight * mask``, task by task.

    ``x`` (T, N, I, H, W), ``weight`` (T, O, I, kh, kw), ``mask`` (T, O, I) or None, ``bias`` (T, O)
    or None -> (T, N, O, Ho, Wo). A kernel whose mask is 0 is left out, whatever its weights hold.
    """
    if mask is not None:
        weight = masked_weight(weight, mask)
    biases = [None] * len(x) if bias is None else bias
    return torch.stack(
        [F.conv2d(*task, stride, padding) for task in zip(x, weight, biases, strict=True)]
    )


def masked_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """The product of (*, O, I, kh, kw) and (*, O, I), zero under a mask of 0 whatever was there."""
    taps = mask[..., None, None]
    left_out = (taps == 0) & ~weight.isfinite()
    return weight.masked_fill(left_out, 0.0) * taps
