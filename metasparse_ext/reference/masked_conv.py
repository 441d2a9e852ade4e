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
        [
            F.conv2d(planar(images), planar(kernels), each, stride, padding)
            for images, kernels, each in zip(x, weight, biases, strict=True)
        ]
    )


def planar(tensor: Tensor) -> Tensor:
    """(N, C, H, W), of one channel with the strides of that format alone.

    They fit channels last, too, and where they look like it oneDNN 3.12 gives wrong numbers for
    some strided convolutions (4x4 on 5x5 at stride 1, 2).
    """
    return tensor.contiguous().flatten().view(tensor.shape) if tensor.shape[1] == 1 else tensor


def masked_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """The product of (*, O, I, kh, kw) and (*, O, I), zero under a mask of 0 whatever was there."""
    taps = mask[..., None, None]
    left_out = (taps == 0) & ~weight.isfinite()
    return weight.masked_fill(left_out, 0.0) * taps
