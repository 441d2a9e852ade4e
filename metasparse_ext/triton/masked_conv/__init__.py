"""The masked convolution family as implicit matrix products, batched over tasks.

A 3x3 layer over a few images is a product of a small matrix of weights with a wide one of pixels.
Nothing is unfolded in memory: each program computes the addresses of its tile of patches. The
reduction runs over flat pairs (channel, tap), which is how the weights of an output channel lie
in memory and which wastes nothing on an image of one or three channels.

    forward       y[o, p]       = sum over (i, tap)  w[o, i, tap]  x[i, p * stride + tap]
    input grad    gx[i, p]      = sum over (o, tap)  w[o, i, tap]  g[o, (p - tap) / stride]
    weight grad   gw[o, i, tap] = sum over pixels    g[o, p]       x[i, p * stride + tap]

Each of them has a module, as have the loads that they share (:mod:`.loads`), what they are told
when they are compiled (:mod:`.sizes`) and the lists of what a mask leaves (:mod:`.block_lists`).

Pixels run along the fast axis of every tile, so that neighbouring threads read neighbouring
addresses. A mask multiplies the tile of weights; where it is 0 the weight is not used, NaN
included. A sum of two convolutions, such as the tangent conv(x_dot, w) + conv(x, w_dot), is one
kernel that runs two reductions into the same accumulator.
"""

from metasparse_ext.triton.masked_conv.forward import masked_conv, masked_conv_pair
from metasparse_ext.triton.masked_conv.input_grad import (
    masked_conv_input_grad,
    masked_conv_input_grad_pair,
)
from metasparse_ext.triton.masked_conv.mask_grad import masked_conv_mask_grad
from metasparse_ext.triton.masked_conv.sizes import Tile
from metasparse_ext.triton.masked_conv.weight_grad import (
    masked_conv_weight_grad,
    masked_conv_weight_grad_pair,
)

__all__ = [
    "Tile",
    "masked_conv",
    "masked_conv_input_grad",
    "masked_conv_input_grad_pair",
    "masked_conv_mask_grad",
    "masked_conv_pair",
    "masked_conv_weight_grad",
    "masked_conv_weight_grad_pair",
]
