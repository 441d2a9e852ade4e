"""A mask of the scores above zero."""

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext._arguments import require_floating
from metasparse_ext.ops._register import register_fake


def binary_mask(scores: Tensor) -> Tensor:
    """The mask that is 1 where ``scores > 0`` and 0 elsewhere.

    Zero, -0.0 and NaN are not above zero: their mask is 0. The derivative is taken to be the
    identity (straight-through), in reverse and in forward mode: the gradient that reaches the mask
    reaches the scores unchanged, those of pruned entries included, which is how they come back.

    Args:
        scores: Any shape, floating dtype.

    Returns:
        Zeros and ones in the shape and dtype of ``scores``.

    Raises:
        TypeError: ``scores`` is not a dense tensor of a floating dtype.

    MetaDOCK's gate (Chavan et al., CVPR 2022), 1[sigmoid(scores) > 0.5] with the logistic's own
    derivative, is ``binary_mask(scores.sigmoid() - 0.5)``.
    """
    require_floating("binary_mask", "scores", scores)
    run = torch.ops.metasparse.binary_mask if _library.loaded() else reference.binary_mask
    return run(scores)


def _fake(scores):
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _vmap(info, in_dims, scores):
    return torch.ops.metasparse.binary_mask(scores), in_dims[0]


if _library.problem is None:
    register_fake("binary_mask", _fake)
    torch.library.register_vmap("metasparse::binary_mask", _vmap)
