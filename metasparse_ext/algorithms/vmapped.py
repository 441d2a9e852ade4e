"""Models without a task axis: run by ``torch.func.vmap``, or refused in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

# What torch says where an operator has no rule for several tasks at once.
_BATCHING = re.compile(r"vmap|batching rule|doesn't have storage", re.IGNORECASE)

_ADVICE = {
    r"control flow|\.item\(\)|dynamic shape|storage": "let no value of a tensor decide what its "
    "forward does (torch.where chooses between values)",
    r"inplace|in-place|out=": "update nothing in place in its forward: in evaluation mode "
    "(module.eval()) a norm of the weights keeps its estimate as it is",
}
_OTHERWISE = "replace it by a module of operators that vmap knows (a cell of nn.Linear for one of \
torch's recurrent modules)"


def over_tasks(
    owner: str, model: nn.Module, function: Callable[..., Tensor], *inputs: Any
) -> Tensor:
    """``function`` of each task's inputs, side by side; it calls the model.

    Raises:
        NotImplementedError: naming the module that cannot run so, and what to do.
    """
    try:
        return torch.func.vmap(function, randomness="different")(*inputs)
    except RuntimeError as error:
        text = str(error)
        if not _BATCHING.search(text):
            raise
        advice = next((said for sign, said in _ADVICE.items() if re.search(sign, text)), _OTHERWISE)
        raise NotImplementedError(
            f"{owner}: expected model to run under torch.func.vmap, task beside task, got "
            f"{_failed(model, error.__traceback__)}, which does not: {advice}; or have the model "
            "take a leading task axis itself, and say so by task_aware = True"
        ) from error


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
