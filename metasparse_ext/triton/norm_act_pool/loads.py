"""How the kernels of the block read one channel: its elements by number, and through the gate."""

from __future__ import annotations

import triton
import triton.language as tl

CLOSED = tl.constexpr(4)


@triton.jit
def zeros(B: tl.constexpr):
    """A sum to begin with for each of the elements that a program has in hand."""
    BLOCK: tl.constexpr = B.block  # Triton 3.6 takes no plain int in a shape
    return tl.zeros((BLOCK,), B.sums)


@triton.jit
def plane_offset(e, C: tl.constexpr, PLANE: tl.constexpr):
    """Where element e of a channel lies from the channel's start: planes of samples are C apart."""
    return (e // PLANE).to(tl.int64) * (C * PLANE) + e % PLANE


@triton.jit
def source_offset(e, code, B: tl.constexpr):
    """Where in x the element of place ``code`` of output e lies."""
    if B.pool:
        n, y, x = e // (B.HO * B.WO), e // B.WO % B.HO, e % B.WO
        place = (2 * y + code // 2) * B.W + 2 * x + code % 2
        at = n.to(tl.int64) * (B.C * B.H * B.W) + place
    else:
        at = plane_offset(e, B.C, B.INPUT)
    return at


@triton.jit
def load_code(GATE, at, keep, B: tl.constexpr):
    """The gate's codes; 0, which is open, where nothing is gated."""
    code = tl.zeros(at.shape, tl.int32)
    if B.gated:
        code = tl.load(GATE + at, mask=keep, other=4).to(tl.int32)
    return code


@triton.jit
def load_input(X, e, count, B: tl.constexpr):
    """Elements e of x, 0 from ``count`` on."""
    return tl.load(X + plane_offset(e, B.C, B.INPUT), mask=e < count, other=0.0).to(B.sums)


@triton.jit
def load_through(X, GATE, e, count, B: tl.constexpr):
    """What the gate lets through to outputs e, 0 where it is closed, and the codes."""
    keep = e < count
    code = load_code(GATE, plane_offset(e, B.C, B.OUTPUT), keep, B)
    at = source_offset(e, code, B)
    return tl.load(X + at, mask=keep & (code < CLOSED), other=0.0).to(B.sums), code


@triton.jit
def load_norm(X, GATE, e, count, B: tl.constexpr):
    """Elements e of what the norm sees: x itself, or what the gate lets through."""
    if B.norm_first:
        v = load_input(X, e, count, B)
    else:
        v, _ = load_through(X, GATE, e, count, B)
    return v


@triton.jit
def load_grad(GRAD, code, e, count, B: tl.constexpr):
    """h at outputs e: the gradient of y, where the gate comes last only what passes it."""
    h = tl.load(GRAD + plane_offset(e, B.C, B.OUTPUT), mask=e < count, other=0.0).to(B.sums)
    if B.norm_first:
        h = tl.where(code < CLOSED, h, 0.0)
    return h


@triton.jit
def load_back(GRAD, GATE, e, count, B: tl.constexpr):
    """The gradient that the gate sends back to inputs e, 0 where none, and whether one is sent."""
    keep = e < count
    if B.pool:
        n, y, x = e // (B.H * B.W), e // B.W % B.H, e % B.W
        place = y % 2 * 2 + x % 2
        at = n.to(tl.int64) * (B.C * B.HO * B.WO) + y // 2 * B.WO + x // 2
        keep &= (y < 2 * B.HO) & (x < 2 * B.WO)  # an odd last row or column is in no window
    else:
        place = 0
        at = plane_offset(e, B.C, B.INPUT)
    hit = keep & (load_code(GATE, at, keep, B) == place)
    return tl.load(GRAD + at, mask=hit, other=0.0).to(B.sums), hit


@triton.jit
def load_scalar(VALUES, at, GIVEN: tl.constexpr, DEFAULT: tl.constexpr, B: tl.constexpr):
    """A channel's weight, bias or direction of one; the default where none is given."""
    value = tl.full((), DEFAULT, B.sums)
    if GIVEN:
        value = tl.load(VALUES + at).to(B.sums)
    return value
