"""Which transforms of ``torch.func`` are at work around a call."""

from collections.abc import Callable

import torch
import torch._C._functorch as functorch
from torch import Tensor
from torch._C._functorch import TransformType

_PLAIN = torch.empty(0)  # a tensor of no transform


def derivative_levels() -> tuple[int, int]:
    """How many of them differentiate: in forward mode (jvp), and in reverse mode (grad, vjp)."""
    kinds = [level.key() for level in functorch.get_interpreter_stack() or ()]
    return kinds.count(TransformType.Jvp), kinds.count(TransformType.Grad)


def map_levels() -> tuple[int, ...]:
    """The levels of the vmaps at work, outermost first."""
    stack = functorch.get_interpreter_stack() or ()
    return tuple(level.level() for level in stack if level.key() == TransformType.Vmap)


def maps_at_work() -> Callable[[], bool]:
    """Whether, when it is asked later, every vmap that is at work now still is.

    A tensor wrapped for a level knows whether that has ended, whatever has its number since.
    """
    probes = [functorch._wrap_for_grad(_PLAIN, level) for level in map_levels()]
    return lambda: not any(map(functorch.is_dead_tensor_wrapper, probes))  # type: ignore[attr-defined]


def differentiates_inside_maps() -> bool:
    """Whether a reverse-mode transform is at work, and each one inside all the vmaps."""
    kinds = [level.key() for level in functorch.get_interpreter_stack() or ()]
    if TransformType.Grad not in kinds:
        return False
    return TransformType.Vmap not in kinds[kinds.index(TransformType.Grad) :]


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor has an axis of a vmap."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
