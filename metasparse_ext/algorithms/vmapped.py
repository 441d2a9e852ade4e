"""Models and losses of one task, run for several: by ``torch.func.vmap``, or else task by task."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metasparse_ext._arguments import refuse
from metasparse_ext.algorithms.one_task import AsOneTask, buffers_kept, named

# What torch says where an operator has no rule for several tasks at once.
_BATCHING = re.compile(
    r"vmap|functorch transform|batching rule|doesn't have storage|cannot register a hook", re.I
)

# What a model or a loss may return beside tensors and containers of them.
_PLAIN = (Tensor, bool, int, float, complex, str, type(None))

# Models and losses that vmap could not run.
_one_by_one: WeakSet[Any] = WeakSet()


def over_tasks(owner: str, model: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """``function`` of each task's inputs, side by side; it calls the model.

    A model with an operator that ``torch.func.vmap`` has no rule for, such as a recurrent module of
    torch, with values that decide what its forward does, or with hooks in its backward pass runs
    once for each task instead; a warning says so once a model.

    Raises:
        NotImplementedError: if its forward changes a buffer, naming the module.
        TypeError: if it returns anything but tensors, and tuples, lists or dicts of them.
    """

    def kept(*each: Any) -> Any:
        with buffers_kept(owner, model):
            return function(*each)

    outputs = _Outputs(owner, "model", kept)
    if model not in _one_by_one and (hooked := _hooked(model)):
        results = _each(outputs.tensors, inputs)
        _remember(model, f"{owner}: {hooked} has hooks in its backward pass, so the model runs")
        return outputs.whole(results)
    return _side_by_side(owner, model, outputs, inputs, lambda trace: _failed(model, trace))


def each_task(
    owner: str, name: str, function: Callable[[Any, Tensor], Tensor], outputs: Any, targets: Tensor
) -> Tensor:
    """(T,): a loss or metric of each task, of outputs (T, N, ...) and targets (T, N, ...).

    Outputs may be a tuple or a dict of such tensors. What ``torch.func.vmap`` has no rule for is
    computed task by task, as by :func:`over_tasks`.

    Raises:
        ValueError: if the function does not return one number.
    """
    found = _Outputs(owner, name, function)
    values = _side_by_side(owner, function, found, (outputs, targets), lambda _: f"its {name}")
    if not isinstance(values, Tensor) or values.shape != targets.shape[:1]:
        got = (
            f"a tensor of shape {tuple(values.shape[1:])}"
            if isinstance(values, Tensor)
            else type(values).__name__
        )
        refuse(owner, name, "a function to one number for each task", got)
    return values


def _side_by_side(
    owner: str,
    subject: Any,
    outputs: _Outputs,
    inputs: tuple[Any, ...],
    failed: Callable[[TracebackType | None], str],
) -> Any:
    """What a model or a loss returns of each task's inputs, by vmap or one by one.

    Args:
        owner: Who asks.
        subject: The model or the loss.
        outputs: What calls it.
        inputs: Each with a leading T; what is no tensor is the same for all tasks.
        failed: Says, of the traceback of vmap's error, what has no rule.
    """
    mode = AsOneTask()
    pairs = mode.relu.pairing(subject) if isinstance(subject, nn.Module) else nullcontext()
    with mode, pairs:
        if subject in _one_by_one:
            return outputs.whole(_each(outputs.tensors, inputs))
        axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, inputs)
        try:
            mapped = torch.func.vmap(outputs.tensors, axes, randomness="different")(*inputs)
            return outputs.whole(mapped)
        except RuntimeError as error:
            if not _BATCHING.search(str(error)) or isinstance(error, NotImplementedError):
                raise
            what = failed(error.__traceback__)
        results = _each(outputs.tensors, inputs)
    _remember(
        subject,
        f"{owner}: {what} does not run under torch.func.vmap, which knows faster operators (a cell "
        "of nn.Linear for one of torch's recurrent modules, torch.where for a choice between "
        f"values), so {'the model' if isinstance(subject, nn.Module) else 'it'} runs",
    )
    return outputs.whole(results)


def _remember(subject: Any, why: str) -> None:
    _one_by_one.add(subject)
    warnings.warn(f"{why} task by task", stacklevel=4)


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

    def __init__(self, owner: str, name: str, function: Callable[..., Any]) -> None:
        self._owner, self._name, self._function = owner, name, function

    def tensors(self, *inputs: Any) -> list[Tensor]:
        """Those that it returns, which are all that vmap takes.

        Raises:
            TypeError: if there is something that may hold tensors, unseen.
        """
        self._leaves, self._structure = tree_flatten(self._function(*inputs))
        for leaf in self._leaves:
            if not isinstance(leaf, _PLAIN):
                wanted = "one that returns tensors, or tuples, lists or dicts of them"
                refuse(self._owner, self._name, wanted, type(leaf).__name__, TypeError)
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    def whole(self, tensors: list[Tensor]) -> Any:
        """What it returns, with others in place of its tensors."""
        left = iter(tensors)
        leaves = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return tree_unflatten(leaves, self._structure)


def _each(function: Callable[..., list[Tensor]], inputs: tuple[Any, ...]) -> list[Tensor]:
    """What vmap would return, task by task."""
    leaves, structure = tree_flatten(inputs)
    tasks = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    parts = (
        [leaf[task] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for task in range(tasks)
    )
    results = [function(*tree_unflatten(part, structure)) for part in parts]
    return [torch.stack(tensors) for tensors in zip(*results, strict=True)]


def _hooked(model: nn.Module) -> str | None:
    """The first module of the model that a backward pass calls: with the gradients of all tasks."""
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            return named(name, module)
    return None


def _failed(model: nn.Module, trace: TracebackType | None) -> str:
    """Class and name of the innermost module of the model whose code was running."""
    names = {module: name for name, module in model.named_modules()}
    found = model
    while trace is not None:
        running = trace.tb_frame.f_locals.get("self")
        if isinstance(running, nn.Module) and running in names:
            found = running
        trace = trace.tb_next
    return named(names[found], found)
