"""A mask of the scores above a threshold."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext._arguments import require_floating, require_number
from metasparse_ext.ops._register import contiguous_like, register_fake


def binary_mask(scores: Tensor, threshold: float = 0.0) -> Tensor:
    """The mask that is 1 where ``scores > threshold`` and 0 elsewhere.

    With the threshold 0, zero, -0.0 and NaN are not above it: their mask is 0. The derivative is
    taken to be the identity (straight-through), in reverse and in forward mode: the gradient that
    reaches the mask reaches the scores unchanged, those of pruned entries included, which is how
    they come back.

    Args:
        scores: Any shape, floating dtype.
        threshold: A finite number, rounded to the dtype of ``scores``.

    Returns:
        Zeros and ones in the shape and dtype of ``scores``.

    Raises:
        TypeError: ``scores`` is not a dense tensor of a floating dtype, or the threshold no number.
        ValueError: The threshold is not finite.

    MetaDOCK's gate (Chavan et al., CVPR 2022), 1[sigmoid(scores) > 0.5] with the logistic's own
    derivative, is ``binary_mask(scores.sigmoid(), 0.5)``.
    """
    require_floating("binary_mask", "scores", scores)
    require_number("binary_mask", "threshold", threshold)
    run = torch.ops.metasparse.binary_mask if _library.loaded() else reference.binary_mask
    return run(scores, threshold)


def _vmap(
    info: object, in_dims: Sequence[int | None], scores: Tensor, threshold: float
) -> tuple[Tensor, int | None]:
    return torch.ops.metasparse.binary_mask(scores, threshold), in_dims[0]


if _library.problem is None:
    register_fake("binary_mask", lambda scores, threshold: contiguous_like(scores))
    torch.library.register_vmap("metasparse::binary_mask", _vmap)
