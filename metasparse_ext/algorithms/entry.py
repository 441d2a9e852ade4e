"""What happens around the methods of learners that take samples, whatever they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from metasparse_ext.algorithms.models import check_model
from metasparse_ext.algorithms.samples import (
    checked_batch,
    checked_samples,
    dtypes_explained,
    named_inputs,
)
from metasparse_ext.algorithms.slots import Slots
from metasparse_ext.algorithms.tasks import adapted_in_chunks, in_chunks
from metasparse_ext.algorithms.vmapped import plain_attention
from metasparse_ext.data import Samples, TaskBatch

# Each with its argument, the check of that, and how it takes its tasks in chunks, if it does.
METHODS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any] | None]] = {
    "adapt": ("support", checked_samples, adapted_in_chunks),
    "meta_backward": ("batch", checked_batch, in_chunks),
    "moved_layers": ("support", checked_samples, None),
}


def entry(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a learner that runs under torch's modes and compiler, on checked arguments.

    - In ``torch.inference_mode`` it runs as in ``torch.no_grad``: an inner loop needs gradients,
      which inference mode cannot give.
    - ``torch.compile`` leaves it alone: its gradients are those of ``torch.autograd.grad`` inside.
    - A model that was changed since the learner was made is checked as it was then; of parameters
      that were frozen or thawed the method sees the layout that follows them, from its first line.
    - Labels have any integer dtype to the caller, and int64 to the method.
    - It takes its tasks in chunks, if the learner was told so.
    - Attention is computed as its definition says.
    """
    argument, check, divided = METHODS[method.__name__]

    @functools.wraps(method)
    def entered(self: Any, *args: Any, **keywords: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            why = "a learner takes gradients inside its steps; compile the model instead"
            return torch.compiler.disable(entered, reason=why)(self, *args, **keywords)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                args, keywords = tree_map_only(Tensor, _ordinary, (args, keywords))
                return entered(self, *args, **keywords)
        if not args and argument not in keywords:
            return method(self, **keywords)  # Python says what is missing
        check_model(self.name, self.model, self.dtypes)
        self.follow_frozen()
        device = next(self.model.parameters()).device
        classes = self.loss is None
        given = args[0] if args else keywords[argument]
        given = check(self.name, argument, given, device, classes)
        if args:
            args = (given, *args[1:])
        else:
            keywords[argument] = given
        dtype = next(self.model.parameters()).dtype
        before, self.slots = self.slots, Slots(self.model)
        try:
            with plain_attention(), dtypes_explained(self.name, _inputs(argument, given), dtype):
                if divided and self.task_chunk is not None and self.collecting is None:
                    return divided(self, method, given, self.task_chunk)
                return method(self, *args, **keywords)
        finally:
            self.slots = before

    return entered


def _inputs(argument: str, given: Samples | TaskBatch) -> list[tuple[str, Any]]:
    """What the model will be given, each with its name."""
    if isinstance(given, Samples):
        return named_inputs(f"{argument}.images", given.images)
    return _inputs(f"{argument}.support", given.support) + _inputs(f"{argument}.query", given.query)


def _ordinary(tensor: Tensor) -> Tensor:
    """Autograd takes no tensor that was made in inference mode, but a copy of it."""
    return tensor.clone() if tensor.is_inference() else tensor
