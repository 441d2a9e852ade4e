"""The backward pass of a masked convolution on CUDA: its gradients together, or one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from metasparse_ext import _library
from metasparse_ext.ops import cuda, cuda_features

_INPUT, _WEIGHT = "masked_conv_input_grad", "masked_conv_weight_grad"


def masked_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    input_wanted: bool,
    dense: bool,
    bias_wanted: bool,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """What the CUDA key of ``metasparse::masked_conv_backward`` does.

    Gradients in input and weight that Triton serves, in cuts of as many warps, take one launch;
    else each is the op that it is.
    """
    torch.ops.metasparse_check.masked_conv_backward(
        grad, x, weight, mask, input_wanted, dense, bias_wanted, stride, padding
    )
    of_input = (grad, weight, mask, tuple(x.shape[3:]), stride, padding)
    of_weight = (grad, x, None if dense else mask, tuple(weight.shape[3:]), stride, padding)
    bias_grad = grad.sum((1, 3, 4)) if bias_wanted else x.new_empty(len(x), 0)
    if not input_wanted:
        choice = cuda.choose(_WEIGHT, of_weight)
        return x.new_empty(len(x), 0), cuda.run_choice(_WEIGHT, choice, of_weight), bias_grad
    choices = cuda.choose(_INPUT, of_input), cuda.choose(_WEIGHT, of_weight)
    if {choice.backend for choice in choices} == {"triton"}:
        from metasparse_ext.triton import masked_conv

        tiles = [masked_conv.Tile(**choice.options) for choice in choices]
        if tiles[0][3:] == tiles[1][3:]:
            args = (grad, x, weight, mask, dense, stride, padding)
            with cuda.device_of(grad):
                x_grad, weight_grad = masked_conv.masked_conv_backward(
                    *args,
                    tile=tiles[0],
                    weight_tile=tiles[1],
                    precision=cuda_features.triton_precision(grad),
                )
            return x_grad, weight_grad, bias_grad
    x_grad = cuda.run_choice(_INPUT, choices[0], of_input)
    return x_grad, cuda.run_choice(_WEIGHT, choices[1], of_weight), bias_grad


if _library.problem is None and torch.version.cuda is not None:
    torch.library.impl("metasparse::masked_conv_backward", "cuda", masked_conv_backward)
