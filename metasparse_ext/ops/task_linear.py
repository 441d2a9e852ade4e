"""The linear layer of tasks as one op, with one for its gradients."""

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext.ops._register import register_fake, register_vmap


def task_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(T, N, O), of x (T, N, F), weight (T, O, F) and bias (T, O), of one dtype and device."""
    ops = torch.ops.metasparse if _library.loaded() else reference
    return ops.task_linear(x, weight, bias)


def _fake_linear(x, weight, bias):
    return x.new_empty(*x.shape[:2], weight.shape[1])


def _fake_pair(x1, weight1, x2, weight2, bias):
    return _fake_linear(x1, weight1, bias)


def _fake_backward(grad, x, weight):
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(weight.shape[:2])


if _library.problem is None:
    for _name, _fake in {
        "task_linear": _fake_linear,
        "task_linear_pair": _fake_pair,
        "task_linear_backward": _fake_backward,
    }.items():
        register_fake(_name, _fake)
        register_vmap(_name, getattr(torch.ops.metasparse, _name))
