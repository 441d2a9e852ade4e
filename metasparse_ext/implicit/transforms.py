"""Which transforms of ``torch.func`` are at work around a call."""

import torch
from torch import Tensor
from torch._C._functorch import TransformType


def derivative_levels() -> tuple[int, int]:
    """How many of them differentiate: in forward mode (jvp), and in reverse mode (grad, vjp)."""
    kinds = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    return kinds.count(TransformType.Jvp), kinds.count(TransformType.Grad)


def map_levels() -> tuple[int, ...]:
    """The levels of the vmaps at work, outermost first."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return tuple(level.level() for level in stack if level.key() == TransformType.Vmap)


def differentiates_inside_maps() -> bool:
    """Whether a reverse-mode transform is at work, and each one inside all the vmaps."""
    kinds = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    if TransformType.Grad not in kinds:
        return False
    return TransformType.Vmap not in kinds[kinds.index(TransformType.Grad) :]


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor has an axis of a vmap."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
