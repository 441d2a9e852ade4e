"""How the kernels of the family read their operands: pixels, patches of images, masked weights."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, CUT: tl.constexpr):
    """A tile of sums to begin with. (Triton 3.6 takes no plain int in a shape.)"""
    return tl.zeros((ROWS, COLUMNS), CUT.sums)


@triton.jit
def pixel_of(p, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Flat pixel index -> (sample, row, column); the sample carries the width of all addresses."""
    n = p // (ROWS * COLUMNS)
    if WIDE:
        n = n.to(tl.int64)
    return n, p // COLUMNS % ROWS, p % COLUMNS


@triton.jit
def load_patches(X, i, tap, inside_k, n, y, x, inside_p, S: tl.constexpr):
    """What taps (k,) of channels (k,) see at output pixels (p,): (k, p), 0 beyond the image."""
    row = (y * S.SH - S.PH)[None, :] + (tap // S.KW)[:, None]
    column = (x * S.SW - S.PW)[None, :] + (tap % S.KW)[:, None]
    inside = inside_k[:, None] & inside_p[None, :]
    inside &= (row >= 0) & (row < S.H) & (column >= 0) & (column < S.W)
    at = (n * (S.I * S.H * S.W))[None, :] + (i * (S.H * S.W))[:, None] + row * S.W + column
    return tl.load(X + at, mask=inside, other=0.0)


@triton.jit
def load_weights(WEIGHT, MASK, o, i, tap, inside, S: tl.constexpr, MASKED: tl.constexpr):
    """weight * mask at broadcast (o, i, tap); 0 where the mask is 0, whatever the weight holds."""
    pair = o * S.I + i
    w = tl.load(WEIGHT + pair * S.TAPS + tap, mask=inside, other=0.0)
    if MASKED:
        m = tl.load(MASK + pair, mask=inside, other=0.0)
        w = tl.where(m != 0, w * m, 0.0)
    return w


@triton.jit
def taps_of_phase(phase, S: tl.constexpr):
    """Of a parity of input pixels: the first tap that reaches it, and how many do, by axis."""
    first_y, first_x = (phase // S.SW + S.PH) % S.SH, (phase % S.SW + S.PW) % S.SW
    count_y, count_x = (S.KH - first_y + S.SH - 1) // S.SH, (S.KW - first_x + S.SW - 1) // S.SW
    return first_y, first_x, tl.maximum(count_y, 0), tl.maximum(count_x, 0)
