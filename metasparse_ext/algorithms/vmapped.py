"""Models without a task axis: run by ``torch.func.vmap``, or where that cannot be, task by task."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

# What torch says where an operator has no rule for several tasks at once, and where one task would
# change what another sees.
_BATCHING = re.compile(r"vmap|batching rule|doesn't have storage", re.IGNORECASE)
_IN_PLACE = re.compile(r"inplace|in-place|out=")

# Models that vmap could not run.
_one_by_one: WeakSet[nn.Module] = WeakSet()


def over_tasks(owner: str, model: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """``function`` of each task's inputs, side by side; it calls the model.

    A model with an operator that ``torch.func.vmap`` has no rule for, such as a recurrent module of
    torch, or with values that decide what its forward does, runs once for each task instead; a
    warning says so once a model.

    Raises:
        NotImplementedError: if its forward updates something in place, naming the module.
    """
    outputs = _Outputs(function)
    if model in _one_by_one:
        return outputs.whole(_each(outputs.tensors, inputs))
    try:
        mapped = torch.func.vmap(outputs.tensors, randomness="different")(*inputs)
        return outputs.whole(mapped)
    except RuntimeError as error:
        text = str(error)
        if not _BATCHING.search(text):
            raise
        failed = _failed(model, error.__traceback__)
        if _IN_PLACE.search(text):
            raise NotImplementedError(
                f"{owner}: expected model to update nothing in place in its forward, which tasks "
                f"would share, got {failed}, which does: in evaluation mode (module.eval()) a norm "
                "of the weights keeps its estimate as it is"
            ) from error
    results = _each(outputs.tensors, inputs)
    _one_by_one.add(model)
    warnings.warn(
        f"{owner}: {failed} does not run under torch.func.vmap, so the model runs task by task; "
        "operators that vmap knows would be faster (a cell of nn.Linear for one of torch's "
        "recurrent modules, torch.where for a choice between values)",
        stacklevel=2,
    )
    return outputs.whole(results)


@contextmanager
def plain_attention() -> Generator[None]:
    """Has attention computed as its definition says.

    Fused kernels have no second derivative and no rule for tasks side by side; the fast path of
    ``nn.MultiheadAttention`` in evaluation mode has no derivative at all.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Outputs:
    """What a function returns, apart: its tensors, and whatever else there is among them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._leaves: list[Any] = []

    def tensors(self, *inputs: Any) -> list[Tensor]:
        """Those that it returns, which are all that vmap takes."""
        self._leaves, self._structure = tree_flatten(self._function(*inputs))
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    def whole(self, tensors: list[Tensor]) -> Any:
        """What it returns, with others in place of its tensors."""
        left = iter(tensors)
        leaves = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return tree_unflatten(leaves, self._structure)


def _each(function: Callable[..., list[Tensor]], inputs: tuple[Any, ...]) -> list[Tensor]:
    """What vmap would return, task by task."""
    leaves, structure = tree_flatten(inputs)
    parts = [tree_unflatten(each, structure) for each in zip(*leaves, strict=True)]
    results = [function(*part) for part in parts]
    return [torch.stack(tensors) for tensors in zip(*results, strict=True)]


def _failed(model: nn.Module, trace: TracebackType | None) -> str:
    """Class and name of the innermost module of the model whose code was running."""
    names = {module: name for name, module in model.named_modules()}
    found = model
    while trace is not None:
        running = trace.tb_frame.f_locals.get("self")
        if isinstance(running, nn.Module) and running in names:
            found = running
        trace = trace.tb_next
    name = names[found]
    return f"its {name!r} ({type(found).__name__})" if name else type(found).__name__
