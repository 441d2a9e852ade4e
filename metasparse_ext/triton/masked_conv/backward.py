"""The input gradient and the weight gradient of a masked convolution in one launch.

Both read the gradient, neither waits for the other, and each alone leaves most of a GPU idle at
few-shot sizes: programs of the weight gradient follow those of the input gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.masked_conv.convolve import blocks_of, convolve_block
from metasparse_ext.triton.masked_conv.sizes import DEFAULT_TILE, Sizes, Tile
from metasparse_ext.triton.masked_conv.weight_grad import Slices, added, weight_grad_block
from metasparse_ext.triton.masked_conv.weights import pack_weights
from metasparse_ext.triton.operands import operands


@triton.jit
def conv_backward_kernel(
    GRAD, X, WEIGHT, MASK, X_GRAD, PARTIAL, grad_stride, x_stride, weight_stride, mask_stride, N,
    pixel_blocks, input_programs, slice_programs, slices, slice_pixels, S: tl.constexpr,
    WS: tl.constexpr, TAPS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """X_GRAD (T, N, I, H, W) and PARTIAL (slices, T, O, I, taps), by sizes S and WS.

    WEIGHT is packed, with its mask in it. One program per (block of either, task).
    """
    program = tl.program_id(0)
    if program < input_programs:
        convolve_block(
            program % pixel_blocks, program // pixel_blocks, GRAD, WEIGHT, MASK, GRAD, WEIGHT,
            MASK, GRAD, X_GRAD, grad_stride, weight_stride, mask_stride, 0, 0, 0, 0, N, S, False,
            False, False, False,
        )  # fmt: skip
    else:
        rest = program - input_programs
        weight_grad_block(
            rest % slice_programs, rest // slice_programs, GRAD, X, GRAD, X, MASK, PARTIAL,
            grad_stride, x_stride, 0, 0, mask_stride, N, slices, slice_pixels, WS, TAPS, False,
            MASKED,
        )  # fmt: skip


def masked_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, dense: bool,
    stride: tuple[int, int], padding: tuple[int, int],
    *, tile: Tile = DEFAULT_TILE, weight_tile: Tile = DEFAULT_TILE, precision: str = "tf32x3",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of <grad, conv(x, weight * mask)> in x and in weight.

    Args:
        dense: The weight's gradient without the mask.
        tile, weight_tile: Of the input and of the weight gradient; of as many warps and stages.
    """
    tasks, samples, channels, *image = x.shape
    window = (weight.shape[3:], stride, padding)
    sizes = Sizes.of(
        (channels, grad.shape[2]), (image, grad.shape[3:]), window, tile, x.dtype, precision,
        transposed=True,
    )  # fmt: skip
    cut = Slices.of(grad, x, window, weight_tile, precision)
    x_grad, partial = x.new_empty(x.shape), cut.partial(x, final=True)
    packed = pack_weights(weight, mask, sizes)
    pointers, strides = operands(grad, x, packed, None if dense else mask)
    pixel_blocks, row_blocks = blocks_of(samples, sizes)
    slice_programs = cut.blocks * cut.count
    programs = pixel_blocks * row_blocks + slice_programs * cut.row_blocks
    conv_backward_kernel[(programs, 1, tasks)](
        *pointers, x_grad, partial, *strides, samples, pixel_blocks, pixel_blocks * row_blocks,
        slice_programs, cut.count, cut.pixels, sizes, cut.sizes, cut.taps,
        mask is not None and not dense, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return x_grad, added(partial, x)
