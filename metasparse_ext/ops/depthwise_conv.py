"""The depthwise convolution of tasks, with an op for each of its gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext.ops._register import register
from metasparse_ext.ops._shapes import after_window


def depthwise_conv(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """(T, N, C, Ho, Wo), of x (T, N, C, H, W) and weight (T, C, 1, kh, kw), of one dtype."""
    ops = torch.ops.metasparse if _library.loaded() else reference
    return ops.depthwise_conv(x, weight, stride, padding)


# The shapes of results.
_FAKES: dict[str, Callable[..., object]] = {
    "depthwise_conv": lambda x, weight, *window: x.new_empty(
        *x.shape[:3], *after_window(x, weight, *window)
    ),
    "depthwise_conv_input_grad": lambda grad, _weight, size, *_: grad.new_empty(
        *grad.shape[:3], *size
    ),
    "depthwise_conv_weight_grad": lambda grad, _x, size, *_: grad.new_empty(
        grad.shape[0], grad.shape[2], 1, *size
    ),
}


if _library.problem is None:
    register(_FAKES)
