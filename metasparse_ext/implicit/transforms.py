"""Which transforms of ``torch.func`` are at work around a call."""

import torch
from torch._C._functorch import TransformType


def derivative_levels() -> tuple[int, int]:
    """How many of them differentiate: in forward mode (jvp), and in reverse mode (grad, vjp)."""
    kinds = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    return kinds.count(TransformType.Jvp), kinds.count(TransformType.Grad)
