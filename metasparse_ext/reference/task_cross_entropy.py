"""Definition of the cross-entropy of tasks."""

import torch.nn.functional as F
from torch import Tensor


def task_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(T,): mean cross-entropy of each task, of logits (T, N, C) and labels (T, N), int64."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.unflatten(0, labels.shape).mean(1)
