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
        taps = mask[..., None, None]
        left_out = (taps == 0) & ~weight.isfinite()
        weight = weight.masked_fill(left_out, 0.0) * taps
    biases = [None] * len(x) if bias is None else bias
    return torch.stack(
        [F.conv2d(*task, stride, padding) for task in zip(x, weight, biases, strict=True)]
    )
