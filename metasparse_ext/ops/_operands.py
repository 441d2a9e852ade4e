"""What every op asks of a tensor before it looks at shapes."""

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
