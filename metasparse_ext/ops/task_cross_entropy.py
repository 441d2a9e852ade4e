"""The cross-entropy of tasks as one op."""

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext.ops._register import register_autocast, register_fake, register_vmap


def task_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(T,): mean cross-entropy of each task, of logits (T, N, C) and labels (T, N), int64.

    One launch, and one for each of its first and second derivatives. A label that is no class makes
    the loss of its task NaN, because asking would make the host wait for the device.
    """
    ops = torch.ops.metasparse if _library.loaded() else reference
    return ops.task_cross_entropy(logits, labels)


def _fake_loss(logits, labels):
    return logits.new_empty(logits.shape[0])


def _fake_backward(grad, logits, labels):
    return logits.new_empty(logits.shape)


def _fake_double_backward(direction, grad, logits, labels):
    return logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape)


def _register() -> None:
    fakes = {
        "task_cross_entropy": _fake_loss,
        "task_cross_entropy_backward": _fake_backward,
        "task_cross_entropy_double_backward": _fake_double_backward,
    }
    for name, fake in fakes.items():
        register_fake(name, fake)
        register_vmap(name, getattr(torch.ops.metasparse, name))
        # As torch's own: a loss is of float32 inside of autocast.
        register_autocast(name)


if _library.problem is None:
    _register()
