"""The masked convolution family as implicit matrix products, batched over tasks.

A 3x3 layer over a few images is a product of a small matrix of weights with a wide one of pixels.
Nothing is unfolded in memory: a program computes where its pixels lie, once, and reads them there.

    forward       y[o, p]       = sum over (i, tap)  w[o, i, tap]  x[i, p * stride + tap]
    input grad    gx[i, p]      = sum over (o, tap)  w[o, i, tap]  g[o, (p - tap) / stride]
    weight grad   gw[o, i, tap] = sum over pixels    g[o, p]       x[i, p * stride + tap]

The first two are one kernel (:mod:`.convolve`), on weights times mask (:mod:`.weights`); where the
mask is 0 the weight is not used, NaN included. The last two share a launch where both are wanted
(:mod:`.backward`). A sum of two convolutions, such as the tangent conv(x_dot, w) + conv(x, w_dot),
is one launch that runs two reductions into the same accumulator.

Pixels run along the fast axis of every tile that is loaded, so that neighbouring threads read
neighbouring addresses. With few channels one step reduces over all (channel, tap) pairs, which
wastes nothing on an image of one or three channels. Inputs of TF32 products are rounded to TF32.
"""

from metasparse_ext.triton.masked_conv.backward import masked_conv_backward
from metasparse_ext.triton.masked_conv.ops import (
    masked_conv,
    masked_conv_input_grad,
    masked_conv_input_grad_pair,
    masked_conv_mask_grad,
    masked_conv_pair,
    masked_conv_weight_grad,
    masked_conv_weight_grad_pair,
)
from metasparse_ext.triton.masked_conv.sizes import Tile, shared_bytes

__all__ = [
    "Tile",
    "masked_conv",
    "masked_conv_backward",
    "masked_conv_input_grad",
    "masked_conv_input_grad_pair",
    "masked_conv_mask_grad",
    "masked_conv_pair",
    "masked_conv_weight_grad",
    "masked_conv_weight_grad_pair",
    "shared_bytes",
]
