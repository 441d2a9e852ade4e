"""Definitions of the gate that opens by a score, and of a budget's gradient."""

from torch import Tensor

from metasparse_ext.reference.binary_mask import binary_mask


def score_gate(scores: Tensor) -> Tensor:
    """1 where the logistic of scores exceeds 1/2, else 0, with the logistic's gradient."""
    return binary_mask(scores.sigmoid(), 0.5)


def add_budget_gradient(
    gradient: Tensor, scores: Tensor, offset: Tensor, share: Tensor, l1: float
) -> None:
    """Adds logistic'(scores) (offset + share open) + l1 sign(scores) to gradient (T, K).

    ``open`` counts the gates of each task that are open; offset and share are ().
    """
    logistic = scores.sigmoid()
    slope = offset + share * (logistic > 0.5).to(scores.dtype).sum(-1, keepdim=True)
    gradient += slope * ((1 - logistic) * logistic) + l1 * scores.sign()
