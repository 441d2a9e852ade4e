"""What the launchers share: how tensors are handed to kernels, and how many programs to start."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

#: Indices inside one task's part of a tensor are 32-bit below this many elements.
INT32_ELEMENTS = 2**31

#: Two waves of the 132 multiprocessors that the kernels are sized for.
PROGRAMS = 264


def per_task(tensor: Tensor) -> Tensor:
    """(T, …) with every task's part contiguous; a tensor shared by the tasks keeps its stride 0.

    Kernels then need one stride of each operand, that of the task axis. Anything laid out otherwise
    is copied.
    """
    if tensor.shape[0] == 0 or tensor[0].is_contiguous():
        return tensor
    if tensor.stride(0) == 0:
        return tensor[:1].contiguous().expand(tensor.shape)
    return tensor.contiguous()


def task_stride(tensor: Tensor | None) -> int:
    """Elements from one task's part to the next; 0 for a shared or an absent tensor."""
    return 0 if tensor is None or tensor.shape[0] == 1 else tensor.stride(0)


def operands(*tensors: Tensor | None) -> tuple[list[Tensor], list[int]]:
    """Pointers and task strides for a kernel; an absent tensor is a pointer that nobody reads."""
    ready = [None if t is None else per_task(t) for t in tensors]
    stand_in = next(t for t in ready if t is not None)
    return [stand_in if t is None else t for t in ready], [task_stride(t) for t in ready]


def is_wide(*tensors: Tensor | None) -> bool:
    """Whether indices inside a task's part need 64 bits."""
    return any(t is not None and t[:1].numel() >= INT32_ELEMENTS for t in tensors)


def accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    """The dtype sums are kept in, for torch and for Triton: float64 for itself, else float32."""
    if dtype == torch.float64:
        return torch.float64, tl.float64
    return torch.float32, tl.float32
