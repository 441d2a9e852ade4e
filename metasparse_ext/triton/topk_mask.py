"""The top-k mask by a radix search on the bits of the scores: one launch, one program per row.

A score becomes an unsigned key whose order is that of the scores. The k-th largest key is found
digit by digit, eight bits at a time: a histogram of the next digit among the keys that begin with
the digits found so far says which digit comes next. A last pass writes the mask, and hands the ones
left over to the keys equal to the k-th in order of index, by a running count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metasparse_ext.triton.operands import per_task, task_stride


@triton.jit
def load_keys(SCORES, e, inside, BITS: tl.constexpr):
    """Scores as int64 keys of the same order, from 0; and whether a score is NaN.

    Negative numbers are stored as sign and magnitude: their bits count down. -0.0 becomes 0.0.
    """
    x = tl.load(SCORES + e, mask=inside, other=0.0)
    nan = x != x
    x = tl.where(x == 0, 0.0, x)
    if BITS == 32:
        bits = x.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        key = tl.where(bits >> 31 != 0, 0xFFFFFFFF - bits, bits + 0x80000000)
    else:
        # Signed: the order is that of a two's complement number, to which digits are adapted.
        bits = x.to(tl.int64, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
    return key, nan


@triton.jit
def digit_of(key, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """The eight bits of a key from bit SHIFT on."""
    digit = (key >> SHIFT) & 255
    if BITS == 64 and SHIFT == 56:
        digit ^= 128  # the sign bit: negative keys come first
    return digit


@triton.jit
def topk_mask_kernel(
    SCORES, K, MASK, stride, n, BITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: the largest K of SCORES (S, n) become 1 in MASK. A row without an answer is NaN."""
    row = tl.program_id(0).to(tl.int64)
    SCORES += row * stride
    MASK += row * n
    k = tl.load(K + row)
    bins = tl.arange(0, 256)

    prefix = tl.zeros((), tl.int64)
    wanted = k  # of the keys that begin with the prefix, how many belong to the mask
    bad = (k < 0) | (k > n)
    for step in tl.static_range(BITS // 8):
        counts = tl.zeros((256,), tl.int32)
        nans = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, n, BLOCK):
            e = start + tl.arange(0, BLOCK)
            inside = e < n
            key, nan = load_keys(SCORES, e, inside, BITS)
            if step == 0:
                nans |= (inside & nan).to(tl.int32)
                member = inside
            else:
                member = inside & ((key >> (BITS - 8 * step)) == prefix)
            digits = digit_of(key, BITS - 8 - 8 * step, BITS).to(tl.int32)
            counts += tl.histogram(digits, 256, mask=member)
        if step == 0:
            bad |= tl.max(nans, 0) != 0
        # The digit is the largest with at least `wanted` keys at or above it.
        above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
        next_digit = tl.min(tl.where(above < wanted, bins, 255), 0)
        wanted -= tl.sum(tl.where(bins > next_digit, counts, 0), 0)
        prefix = (prefix << 8) | next_digit.to(tl.int64)
        if BITS == 64 and step == 0:
            prefix -= 128  # undoes what digit_of does to the sign bit

    taken = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        e = start + tl.arange(0, BLOCK)
        inside = e < n
        key, _ = load_keys(SCORES, e, inside, BITS)
        equal = (inside & (key == prefix)).to(tl.int32)
        rank = taken + tl.cumsum(equal, 0)
        chosen = (key > prefix) | ((equal != 0) & (rank <= wanted))
        chosen = chosen & (k > 0)
        mask = tl.where(bad, float("nan"), tl.where(chosen, 1.0, 0.0))
        tl.store(MASK + e, mask.to(MASK.dtype.element_ty), mask=inside)
        taken += tl.sum(equal, 0)


def topk_mask(scores: Tensor, k: Tensor, *, block: int = 1024, warps: int = 8) -> Tensor:
    """Ones at the ``k[s]`` largest of each row of scores, ties to the lowest index.

    Args:
        scores: (S, n) float32 or float64, any strides. -0.0 equals 0.0.
        k: (S,) int64.
        block: Scores a program has in hand at a time.
        warps: Warps of a program.

    Returns:
        (S, n), dtype of scores, contiguous. A row with a NaN, or with k not in 0..n, is NaN.
    """
    mask = scores.new_empty(scores.shape)
    scores = per_task(scores)
    bits = torch.finfo(scores.dtype).bits
    topk_mask_kernel[(scores.shape[0],)](
        scores, k.contiguous(), mask, task_stride(scores), scores.shape[1], bits, block,
        num_warps=warps,
    )  # fmt: skip
    return mask
