"""What every op asks of a tensor before it looks at shapes."""

import contextlib

import torch
from torch import Tensor


def check_dense(op: str, name: str, tensor: Tensor) -> None:
    """Refuses tensors whose values do not lie in one strided block of memory.

    Raises:
        TypeError: a sparse, quantized, nested or otherwise packed tensor.
    """
    kind = (
        "a nested"
        if tensor.is_nested
        else "a quantized"
        if tensor.is_quantized
        else f"a {str(tensor.layout).removeprefix('torch.')}"
        if tensor.layout != torch.strided
        else None
    )
    if kind is not None:
        raise TypeError(f"{op}: expected {name} to be a dense (strided) tensor, got {kind} one")


def autocast_is_on(tensor: Tensor) -> bool:
    """Whether an autocast region surrounds the call; never on devices that have none."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Leaves a surrounding autocast region for a ``with`` block."""
    if not torch.amp.is_autocast_available(tensor.device.type):
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
