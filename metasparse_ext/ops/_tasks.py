"""The task axis of the ops' arguments."""

from typing import overload

from torch import Tensor


@overload
def with_tasks(tensor: Tensor, rank: int, tasks: int) -> Tensor: ...
@overload
def with_tasks(tensor: Tensor | None, rank: int, tasks: int) -> Tensor | None: ...
def with_tasks(tensor: Tensor | None, rank: int, tasks: int) -> Tensor | None:
    """A view with a leading task axis; a shared tensor is repeated by a zero stride."""
    if tensor is None or tensor.dim() == rank + 1:
        return tensor
    # One task needs no expand, whose gradient would be summed over it.
    return tensor.unsqueeze(0) if tasks == 1 else tensor.expand(tasks, *tensor.shape)
