"""The linear layer of tasks as one op, with one for its gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext.ops._register import register


def task_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(T, N, O), of x (T, N, F), weight (T, O, F) and bias (T, O), of one dtype and device."""
    ops = torch.ops.metasparse if _library.loaded() else reference
    return ops.task_linear(x, weight, bias)


def _outputs(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[1])


# The shapes of results.
_FAKES: dict[str, Callable[..., object]] = {
    "task_linear": _outputs,
    "task_linear_pair": _outputs,
    "task_linear_backward": lambda grad, x, weight: (
        x.new_empty(x.shape),
        x.new_empty(weight.shape),
        x.new_empty(weight.shape[:2]),
    ),
}

if _library.problem is None:
    register(_FAKES, autocast=False)
