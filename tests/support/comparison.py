"""Results against what is expected of them, element by element."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def first_difference(
    results: Sequence[Tensor],
    expected: Sequence[Tensor],
    scales: Sequence[Tensor],
    bound: float,
    dtype: torch.dtype,
) -> str | None:
    """How the first wrong result is wrong: its shape, its dtype, or an error above ``bound`` times
    the largest of its scale."""
    for index, (got, right, scale) in enumerate(zip(results, expected, scales, strict=True)):
        if got.shape != right.shape:
            return f"result {index}: shape {tuple(got.shape)}, expected {tuple(right.shape)}"
        if got.dtype != dtype:
            return f"result {index}: {got.dtype}, expected {dtype}"
        if got.numel() == 0:
            continue
        error, limit = (got.double() - right).abs(), bound * scale.max()
        wrong = ~(error <= limit)  # NaN is wrong
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            return (
                f"result {index}: {wrong.sum()} of {wrong.numel()} elements differ by more than "
                f"{limit:.2e}, the first at {at}: {got[at]:.9g}, expected {right[at]:.9g}; "
                f"largest error {error.max():.2e} = {error.max() / scale.max():.1e} of the scale"
            )
    return None


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor | None]) -> str | None:
    """Which argument a call has written to."""
    for name, old in before.items():
        same = (old == after[name]) | (old.isnan() & after[name].isnan())
        if not same.all():
            return f"the call changed its argument {name}"
    return None
