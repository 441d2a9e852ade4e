"""T task networks: one model, and for each task parameters of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from metasparse_ext._arguments import (
    refuse,
    require,
    require_like,
    require_tensor,
    require_type,
    shown,
)
from metasparse_ext.algorithms.samples import (
    INTEGERS,
    check_classes,
    dtypes_explained,
    named_inputs,
)
from metasparse_ext.algorithms.slots import Slots
from metasparse_ext.algorithms.vmapped import over_tasks, plain_attention
from metasparse_ext.data import Inputs
from metasparse_ext.nn import MaskedConv2d
from metasparse_ext.ops.task_cross_entropy import task_cross_entropy


class AdaptedTasks:
    """T task networks: a model and its adapted parameters.

    Calling it with images (T, N, C, H, W) returns the logits (T, N, ways); each task's images pass
    through its own network, with batch statistics over the N images of that task. A tuple of inputs
    is given to the model as arguments, a dict as keywords; what the model returns may be a tuple or
    a dict of tensors.

    Attributes:
        model: The network. ``parameters`` take the place of its own.
        parameters: Name to tensor (T, ...), without a graph.

    Raises:
        TypeError, ValueError: As :func:`task_call`.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        _check_parameters("AdaptedTasks", model, parameters)
        self.model = model
        self.parameters = dict(parameters)

    def __call__(self, images: Inputs) -> Any:
        _check_images("AdaptedTasks", images, self.parameters)
        with plain_attention(), _explained("AdaptedTasks", images, self.parameters):
            return run_tasks("AdaptedTasks", self.model, self.parameters, images)

    @property
    def tasks(self) -> int:
        return next(iter(self.parameters.values())).shape[0]

    @torch.no_grad()
    def masks(self) -> dict[str, Tensor]:
        """The masks by layer name: (T, O, I), or (T, O, I, kh, kw) with one entry a weight."""
        masks = task_masks(self.model, self.parameters, self.tasks)
        # Copies: a mask that is not learned is the model's own.
        return {
            name: mask.clone(memory_format=torch.contiguous_format) for name, mask in masks.items()
        }

    @torch.no_grad()
    def active(self) -> Tensor:
        """(T,) fraction of all masked convolutions' kernels in use; 1 where there are none."""
        masks = task_masks(self.model, self.parameters, self.tasks)
        if masks:
            return active_fraction(masks)
        parameter = next(iter(self.parameters.values()))
        return parameter.new_ones(self.tasks)


def task_call(model: nn.Module, parameters: Mapping[str, Tensor], images: Inputs) -> Any:
    """Runs T task networks, each with its own parameters on its own images.

    A model that understands the task axis runs once on everything; any other runs through
    ``torch.func.vmap`` over T.

    Args:
        model: From images to logits.
        parameters: Name to (T, ...). Parameters and buffers that are not named are the model's own,
            shared.
        images: (T, N, C, H, W), or (T, N, ...) for a model that takes other inputs; for several, a
            tuple of arguments or a dict of keywords.

    Returns:
        (T, N, ways), or what the model returns with a leading T.

    Raises:
        TypeError: if an argument has another type, or images a dtype that the model cannot take.
        ValueError: if a name is none of the model's, or the images or a parameter are those of
            another number of tasks.
        NotImplementedError: if the model cannot run through ``torch.func.vmap``.
    """
    _check_parameters("task_call", model, parameters)
    _check_images("task_call", images, parameters)
    with _explained("task_call", images, parameters):
        return run_tasks("task_call", model, parameters, images)


def run_tasks(
    owner: str,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    images: Inputs,
    slots: Slots | None = None,
) -> Any:
    """What :func:`task_call` computes of arguments that are known to be right.

    Args:
        slots: Those of the model, where it is called more than once.
    """
    slots = slots or Slots(model)
    if slots.task_aware:
        return slots.call(parameters, images)

    return over_tasks(owner, model, slots.call, dict(parameters), images)


def detached(outputs: Any) -> Any:
    """What a model returned, without a graph."""
    return tree_map_only(Tensor, Tensor.detach, outputs)


def logits_of(owner: str, model: nn.Module, output: object) -> Tensor:
    """What a model returned, if that is a tensor.

    Raises:
        TypeError: if it is a dict, a tuple or anything else.
    """
    if isinstance(output, Tensor):
        return output
    raise TypeError(
        f"{owner}: expected model to return its logits, a tensor, got {type(output).__name__} from "
        f"{type(model).__name__}; give a loss that takes it, or wrap it in a module that returns "
        "them alone"
    )


def cross_entropy(logits: Tensor, labels: Tensor, *, owner: str = "cross_entropy") -> Tensor:
    """(T,): mean cross-entropy of each task, for logits (T, N, ways) and labels (T, N).

    Args:
        logits: Of a floating-point dtype.
        labels: Integers of any dtype.
        owner: Who asks, which errors begin with.

    Raises:
        TypeError: if either is no tensor, or has another dtype.
        ValueError: if the labels have another shape, or one is no class of the logits.
    """
    require_tensor(owner, "logits", logits)
    require_tensor(owner, "labels", labels)
    if not logits.is_floating_point():
        refuse(owner, "logits", "of a floating-point dtype", shown(logits.dtype), TypeError)
    if labels.dtype not in INTEGERS:
        refuse(owner, "labels", "integers", shown(labels.dtype), TypeError)
    require(logits.dim() == 3, owner, "logits", "(T, N, ways)", tuple(logits.shape))
    wanted = f"(T, N) = {tuple(logits.shape[:-1])} like the logits"
    require(labels.shape == logits.shape[:-1], owner, "labels", wanted, tuple(labels.shape))
    check_classes(owner, labels, logits.shape[-1])
    return task_cross_entropy(logits, labels.long())


def task_masks(model: nn.Module, parameters: Mapping[str, Tensor], tasks: int) -> dict[str, Tensor]:
    """The mask of every masked convolution, with a task axis, by the name of its layer."""
    slots = Slots(model)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, MaskedConv2d)]

    def found(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with slots.holding(held):
            return {name: layer.masker(layer.weight) for name, layer in layers}

    if slots.task_aware:
        masks = found(parameters)
        shared = {name for name, mask in masks.items() if mask.dim() in (2, 4)}
        return {
            name: mask.expand(tasks, *mask.shape) if name in shared else mask
            for name, mask in masks.items()
        }
    each = [found({name: p[task] for name, p in parameters.items()}) for task in range(tasks)]
    return {name: _side_by_side([masks[name] for masks in each]) for name, _ in layers}


def _side_by_side(masks: list[Tensor]) -> Tensor:
    """(T, ...) of a mask a task; a view of one that is the same for all of them."""
    first = masks[0]
    if all(mask is first for mask in masks):
        return first.expand(len(masks), *first.shape)
    return torch.stack(masks)


def active_fraction(masks: Mapping[str, Tensor]) -> Tensor:
    """(T,) fraction of kernels in use, those with at least one active weight, over all layers."""
    tasks = len(next(iter(masks.values())))
    shared = all(mask.stride(0) == 0 for mask in masks.values())
    rows = [mask[:1] if shared else mask for mask in masks.values()]
    kernels = [(m if m.dim() == 3 else m.flatten(-2).amax(-1)).flatten(1) for m in rows]
    fraction = torch.cat(kernels, 1).ne(0).float().mean(1)
    return fraction.repeat(tasks) if shared else fraction


def _check_parameters(owner: str, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    require_type(owner, "model", model, nn.Module, "an nn.Module")
    require_type(owner, "parameters", parameters, Mapping, "a mapping from names to tensors")
    require(bool(parameters), owner, "parameters", "at least one tensor by its name", parameters)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in parameters.items():
        require(name in own, owner, "parameters", f"of {type(model).__name__}", name)
        require_tensor(owner, f"parameters[{name!r}]", value)
        require(value.dim() > 0, owner, f"parameters[{name!r}]", "(T, ...)", value)
    counts = {name: len(value) for name, value in parameters.items()}
    require(len(set(counts.values())) == 1, owner, "parameters", "those of T tasks each", counts)


def _explained(
    owner: str, images: Inputs, parameters: Mapping[str, Tensor]
) -> AbstractContextManager[None]:
    dtype = next(iter(parameters.values())).dtype
    return dtypes_explained(owner, named_inputs("images", images), dtype)


def _check_images(owner: str, images: Inputs, parameters: Mapping[str, Tensor]) -> None:
    first = next(iter(parameters.values()))
    tasks = len(first)
    for name, each in named_inputs("images", images):
        require_tensor(owner, name, each)
        require_like(owner, name, each, "the parameters", first, dtype=False)
        wanted = f"(T, N, ...) with T = {tasks} like the parameters"
        fits = each.dim() > 1 and each.shape[0] == tasks
        require(fits, owner, name, wanted, tuple(each.shape))
