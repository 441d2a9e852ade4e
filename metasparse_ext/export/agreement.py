"""Whether what leaves computes what was adapted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metasparse_ext._arguments import refuse

# The most that numbers may differ, beside the largest of them: rounding, which batch norm magnifies
# where a channel hardly varies.
_TOLERANCE = 1e-3
#: What stands for the largest of them where that is smaller.
LEAST = 0.1
#: The same where one side is from another device than the CPU, which may compute in fewer digits.
LEAST_ACROSS_DEVICES = 1.0


def require_logits(
    compute: Callable[[], Tensor],
    wanted: Tensor,
    expected: str,
    got: str,
    *,
    instead: str = "",
    least: float = LEAST,
) -> Tensor:
    """Refuses a network, named ``got``, that raises an error or gives other logits than wanted.

    Returns:
        The logits.

    Raises:
        ValueError: Saying what was expected, what came of it and what to do instead.
    """
    try:
        found = compute()
    # It may be of anyone's code, in surroundings that it was not written for.
    except Exception as error:
        why = f"{got}, which says: {reason(error)}{instead}"
        refuse("export", "the network", expected, why)
    if not agree(found, wanted, least):
        by = f" by {float((found - wanted).abs().max()):.2g}" if found.shape == wanted.shape else ""
        refuse("export", "the network", expected, f"{got}, whose logits differ{by}{instead}")
    return found


def agree(found: Tensor, wanted: Tensor, least: float = LEAST) -> bool:
    """Whether numbers are the same up to rounding, beside the largest of them, or ``least``."""
    if found.shape != wanted.shape:
        return False
    if not wanted.numel():
        return True
    limit = _TOLERANCE * max(least, float(wanted.abs().max()))
    return float((found - wanted).abs().max()) <= limit


def reason(error: Exception) -> str:
    """The words of an error in one line, cut short."""
    return " ".join(str(error).split())[:300]


def one_by_one(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits of images that are given alone."""
    return torch.cat([network(image[None].clone()) for image in images])
