"""The launchers of the family: arguments of the ``metasparse::`` ops, a tile and a precision.

Tensors are float64, float32, bfloat16 or float16, of any strides, 0 along T for one that the tasks
share. ``precision`` is of the products of float32: "tf32", "tf32x3" (as accurate as float32) or
"ieee", which is without tensor cores and wants eight warps. Results are contiguous.
"""

from __future__ import annotations

from torch import Tensor

from metasparse_ext.triton.masked_conv.convolve import convolve
from metasparse_ext.triton.masked_conv.sizes import DEFAULT_TILE, PAIR_TILE, Tile
from metasparse_ext.triton.masked_conv.weight_grad import mask_grad, weight_grad

Pair = tuple[int, int]
Optional = Tensor | None
_NOTHING = (None, None, None)


def _result_image(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    sizes = zip(x.shape[3:], weight.shape[3:], stride, padding, strict=True)
    height, width = ((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
    return height, width


def masked_conv(
    x: Tensor, weight: Tensor, mask: Optional, bias: Optional, stride: Pair, padding: Pair,
    *, tile: Tile = DEFAULT_TILE, precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """conv(x (T, N, I, H, W), weight (T, O, I, kh, kw) * mask (T, O, I)) + bias (T, O).

    Returns (T, N, O, Ho, Wo).
    """
    window, image = (weight.shape[3:], stride, padding), _result_image(x, weight, stride, padding)
    return convolve(((x, weight, mask), _NOTHING), bias, image, window, tile, precision)


def masked_conv_pair(
    x1: Tensor, weight1: Tensor, mask1: Optional, x2: Tensor, weight2: Tensor, mask2: Optional,
    bias: Optional, stride: Pair, padding: Pair,
    *, tile: Tile = PAIR_TILE, precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """conv(x1, weight1 * mask1) + conv(x2, weight2 * mask2) + bias, as :func:`masked_conv`."""
    window = (weight1.shape[3:], stride, padding)
    terms, image = (x1, weight1, mask1), _result_image(x1, weight1, stride, padding)
    return convolve((terms, (x2, weight2, mask2)), bias, image, window, tile, precision)


def masked_conv_input_grad(
    grad: Tensor, weight: Tensor, mask: Optional, input_size: Pair, stride: Pair, padding: Pair,
    *, tile: Tile = DEFAULT_TILE, precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """The gradient in x of <grad (T, N, O, Ho, Wo), conv(x, weight * mask)>: (T, N, I, H, W)."""
    terms, window = ((grad, weight, mask), _NOTHING), (weight.shape[3:], stride, padding)
    return convolve(terms, None, input_size, window, tile, precision, transposed=True)


def masked_conv_input_grad_pair(
    grad1: Tensor, weight1: Tensor, mask1: Optional, grad2: Tensor, weight2: Tensor,
    mask2: Optional, input_size: Pair, stride: Pair, padding: Pair,
    *, tile: Tile = PAIR_TILE, precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """The sum of two :func:`masked_conv_input_grad`."""
    terms, window = (grad1, weight1, mask1), (weight1.shape[3:], stride, padding)
    return convolve(
        (terms, (grad2, weight2, mask2)), None, input_size, window, tile, precision, transposed=True
    )


def masked_conv_weight_grad(
    grad: Tensor, x: Tensor, mask: Optional, kernel_size: Pair, stride: Pair, padding: Pair,
    *, tile: Tile = DEFAULT_TILE, precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """The gradient in w of <grad, conv(x, w * mask)>: (T, O, I, kh, kw), 0 where the mask is 0.

    With a mask only tiles with an active kernel are computed; None for all kernels.
    """
    return weight_grad((grad, x, None, None), mask, (kernel_size, stride, padding), tile, precision)


def masked_conv_weight_grad_pair(
    grad1: Tensor, x1: Tensor, grad2: Tensor, x2: Tensor, mask: Optional, kernel_size: Pair,
    stride: Pair, padding: Pair, *, tile: Tile = PAIR_TILE, precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """The sum of two :func:`masked_conv_weight_grad` with one mask."""
    return weight_grad(
        (grad1, x1, grad2, x2), mask, (kernel_size, stride, padding), tile, precision
    )


def masked_conv_mask_grad(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair,
    *, tile: Tile = DEFAULT_TILE, precision: str = "tf32x3",
) -> Tensor:  # fmt: skip
    """The gradient in m of <grad, conv(x, weight * m)>: (T, O, I), pruned kernels included."""
    window = (weight.shape[3:], stride, padding)
    return mask_grad((grad, x, None, None), weight, window, tile, precision)
