"""What the kernels of the family share: pixels, patches of images, and rounding."""

from __future__ import annotations

import triton
import triton.language as tl

#: A row or column that lies in no image.
OUTSIDE = tl.constexpr(1 << 30)


#: Adds half of TF32's last place to the bits of a float32 number that is finite: two instructions,
#: where ``cvt.rna.tf32`` is compiled to three.
ADD_HALF = tl.constexpr("""{
    .reg .pred finite;
    .reg .f32 size;
    abs.f32 size, $1;
    setp.lt.f32 finite, size, 0f7F800000;
    mov.b32 $0, $1;
    @finite add.s32 $0, $1, 0x1000;
}""")


@triton.jit
def round_tf32(x):
    """The nearest TF32 numbers of float32 ones, ties away from zero; NaN and infinity stay.

    Tensor cores ignore the 13 bits below the last place of TF32. Without rounding they would
    truncate, and every product would shrink.
    """
    return tl.inline_asm_elementwise(ADD_HALF, "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def multiply(a, b, acc, S: tl.constexpr):
    """acc + a b."""
    return tl.dot(a, b, acc, input_precision=S.precision, out_dtype=acc.dtype)


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, S: tl.constexpr):
    """A tile of sums to begin with. (Triton 3.6 takes no plain int in a shape.)"""
    return tl.zeros((ROWS, COLUMNS), S.sums)


@triton.jit
def pixel_of(p, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Flat pixel index -> (sample, row, column); the sample is of 64 bits, as are addresses."""
    return (p // (ROWS * COLUMNS)).to(tl.int64), p // COLUMNS % ROWS, p % COLUMNS


@triton.jit
def within(position, size):
    """Whether 0 <= position < size."""
    return position.to(tl.uint32) < size


@triton.jit
def load_flat(X, row, column, S: tl.constexpr):
    """What every (channel, tap) pair (k,) sees from pixels (p,): (k, p), 0 beyond the image.

    X points at each pixel's place in channel 0, which may lie outside of the image.
    """
    CHANNELS: tl.constexpr = S.channels
    k = tl.arange(0, CHANNELS)
    channel, ky, kx = k // S.TAPS, k % S.TAPS // S.KW, k % S.KW
    inside = within(row[None, :] + ky[:, None], S.H) & within(column[None, :] + kx[:, None], S.W)
    inside &= (k < S.C * S.TAPS)[:, None]
    at = channel * (S.H * S.W) + ky * S.W + kx
    return tl.load(X[None, :] + at[:, None], mask=inside, other=0.0)
