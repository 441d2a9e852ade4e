"""Definition of the depthwise convolution of tasks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metasparse_ext.reference.masked_conv import planar


def depthwise_conv(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """conv2d in which each channel sees itself alone, task by task.

    ``x`` (T, N, C, H, W), ``weight`` (T, C, 1, kh, kw) -> (T, N, C, Ho, Wo).
    """
    return torch.stack(
        [
            F.conv2d(planar(images), planar(kernels), None, stride, padding, groups=len(kernels))
            for images, kernels in zip(x, weight, strict=True)
        ]
    )
