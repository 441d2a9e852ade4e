"""The gate that opens by a score, and the gradient of a budget on such gates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext._arguments import refuse, require_floating
from metasparse_ext.ops._register import VmapInfo, contiguous_like, register_fake


def score_gate(scores: Tensor) -> Tensor:
    """MetaDOCK's gate: 1 where the logistic of a score exceeds one half, and 0 elsewhere.

    The derivatives, of all orders and in forward mode, are those of the logistic: the threshold
    counts as the identity. It equals ``binary_mask(scores.sigmoid(), 0.5)``, in one launch for the
    gates and in one for each gradient.

    Args:
        scores: Any shape but (), floating dtype.

    Returns:
        Zeros and ones in the shape and dtype of ``scores``; 0 where a score is NaN.

    Raises:
        TypeError: ``scores`` is not a dense tensor of a floating dtype.
        ValueError: ``scores`` has no axis.

    Source: MetaDOCK (Chavan et al., CVPR 2022) and its public code.
    """
    require_floating("score_gate", "scores", scores)
    if scores.dim() == 0:
        refuse("score_gate", "scores", "of one axis at least", "shape ()")
    run = torch.ops.metasparse.score_gate if _library.loaded() else reference.score_gate
    return run(scores)


def add_budget_gradient(
    gradient: Tensor, scores: Tensor, offset: Tensor, share: Tensor, l1: float
) -> None:
    """Adds in place; see :func:`metasparse_ext.reference.add_budget_gradient`."""
    ops = torch.ops.metasparse if _library.loaded() else reference
    ops.add_budget_gradient(gradient, scores, offset, share, l1)


def _vmap_gate(info: VmapInfo, in_dims: tuple[int], scores: Tensor) -> tuple[Tensor, int]:
    return torch.ops.metasparse.score_gate(scores.movedim(in_dims[0], 0)), 0


def _vmap_grad(
    info: VmapInfo,
    in_dims: Sequence[int | None],
    grad: Tensor,
    factor: Tensor | None,
    scores: Tensor,
    order: int,
) -> tuple[Tensor, int]:
    operands = [
        t
        if t is None
        else t.expand(info.batch_size, *t.shape)
        if dim is None
        else t.movedim(dim, 0)
        for t, dim in zip((grad, factor, scores), in_dims, strict=False)
    ]
    return torch.ops.metasparse.score_gate_grad(*operands, order), 0


if _library.problem is None:
    register_fake("score_gate", contiguous_like)
    register_fake("score_gate_grad", lambda grad, factor, scores, order: contiguous_like(scores))
    register_fake("add_budget_gradient", lambda *_: None)
    torch.library.register_vmap("metasparse::score_gate", _vmap_gate)
    torch.library.register_vmap("metasparse::score_gate_grad", _vmap_grad)
