"""The cross-entropy of tasks as one op."""

from collections.abc import Callable

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext.ops._register import register


def task_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(T,): mean cross-entropy of each task, of logits (T, N, C) and labels (T, N), int64.

    One launch, and one for each of its first and second derivatives. A label that is no class makes
    the loss of its task NaN, because asking would make the host wait for the device.
    """
    ops = torch.ops.metasparse if _library.loaded() else reference
    return ops.task_cross_entropy(logits, labels)


# The shapes of results.
_FAKES: dict[str, Callable[..., object]] = {
    "task_cross_entropy": lambda logits, labels: logits.new_empty(logits.shape[0]),
    "task_cross_entropy_backward": lambda grad, logits, labels: logits.new_empty(logits.shape),
    "task_cross_entropy_double_backward": lambda direction, grad, logits, labels: (
        logits.new_empty(logits.shape[0]),
        logits.new_empty(logits.shape),
    ),
}


if _library.problem is None:
    register(_FAKES)
