"""What a model costs: parameters and multiply-accumulates, dense and with its masks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    refuse,
    require,
    require_shape,
    require_size,
    require_tensor,
    require_type,
)
from metasparse_ext.nn.evaluating import evaluating
from metasparse_ext.nn.masked_conv import MaskedConv2d

Count = int | Tensor
# Of one input, or of each of several.
_Shape = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]
_DType = torch.dtype | Sequence[torch.dtype | None] | Mapping[str, torch.dtype | None] | None

# Of a recurrent layer a weight is used once a time step; batch norms and the like are not counted.
_COUNTED = (nn.Conv2d, nn.Linear, nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class LayerCost:
    """One layer: its parameters and the multiply-accumulates it spends on one input.

    ``kernels`` are the (out, in) pairs of a masked convolution and 0 for any other layer. Active
    counts are integers, or int64 tensors (T,) where the masks have a task axis.
    """

    name: str
    kind: str
    parameters: int
    active_parameters: Count
    macs: int
    active_macs: Count
    kernels: int = 0
    active_kernels: Count = 0


@dataclass(frozen=True)
class Cost:
    """The cost of a model: one entry a layer, and the sums as attributes.

    Active parameters are what a pruned model has to store: the weights of active kernels, biases,
    norms and heads. The scores of learned masks are not counted, for they are not needed once the
    mask is known.
    """

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def active_parameters(self) -> Count:
        return sum(layer.active_parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def active_macs(self) -> Count:
        return sum(layer.active_macs for layer in self.layers)

    @property
    def kernels(self) -> int:
        return sum(layer.kernels for layer in self.layers)

    @property
    def active_kernels(self) -> Count:
        return sum(layer.active_kernels for layer in self.layers)

    def __str__(self) -> str:
        header = ("layer", "kind", "kernels", "active", "parameters", "active", "MACs", "active")
        total = ("total", "", *_counts(self))
        rows = [header, *((c.name, c.kind, *_counts(c)) for c in self.layers), total]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def cost(
    model: nn.Module,
    input_shape: _Shape,
    masks: Mapping[str, Tensor] | None = None,
    *,
    dtype: _DType = None,
) -> Cost:
    """Counts a model's parameters and the multiply-accumulates of one input, dense and active.

    Runs the model once on a zero input. Convolutions (also grouped and dilated ones), linear layers
    and recurrent ones (RNN, LSTM, GRU and their cells: each weight once a time step) count their
    multiply-accumulates; attention, batch norm, activations and pooling are not counted.
    A kernel with every entry masked costs nothing; under a mask with one entry a weight, each
    active weight costs one multiply-accumulate a position.

    Args:
        model: Any module that takes images (N, C, H, W), or other inputs (N, ...).
        input_shape: Of one input: (C, H, W) of an image. Of a model that takes several, a tuple of
            the shapes of its arguments, or a mapping of those of its keywords.
        masks: Masks to count instead of the model's own, by the name of the layer, with or without
            a leading task axis: what ``AdaptedTasks.masks()`` returns. Linear layers may have one
            too, with one entry a weight.
        dtype: Of the input, such as ``torch.int64`` for a model of tokens; by default that of the
            parameters. Of several inputs, one for all or one each.

    Returns:
        A :class:`Cost`; ``print`` it for a table.

    Example:
        >>> mask = torch.zeros(8, 3)
        >>> mask[:, 0] = 1
        >>> conv = MaskedConv2d(3, 8, 3, padding=1, mask=mask)
        >>> counted = cost(conv, (3, 32, 32))
        >>> counted.macs, counted.active_macs
        (221184, 73728)

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if input_shape is not (C, H, W), dtypes are not as many as inputs, or a mask
            names no layer that can have one or does not fit it.
    """
    require_type("cost", "model", model, nn.Module, "a module")
    shapes, dtypes = _each(input_shape, dtype)
    one = not isinstance(input_shape, Mapping) and shapes[0] is input_shape
    images = one and any(isinstance(m, nn.Conv2d) for m in model.modules())
    for shape in shapes:
        require_type("cost", "input_shape", shape, (tuple, list), "(C, H, W)")
        fits = len(shape) == 3 if images else len(shape) > 0 or not one
        require(fits, "cost", "input_shape", "(C, H, W)", shape)
        for size in shape:
            require_size("cost", "input_shape", size)
    for each in dtypes:
        if each is not None:
            require_type("cost", "dtype", each, torch.dtype, "a dtype or None")
    parameter = next(model.parameters(), torch.empty(0))
    inputs = [
        torch.zeros(1, *shape, device=parameter.device, dtype=each or parameter.dtype)
        for shape, each in zip(shapes, dtypes, strict=True)
    ]
    maskable = (MaskedConv2d, nn.Linear)
    masked = {name: m for name, m in model.named_modules() if isinstance(m, maskable)}
    if masks is not None:
        _check_masks(masks, masked)
    maskers = {m.masker for m in masked.values() if isinstance(m, MaskedConv2d)}
    names = list(input_shape) if isinstance(input_shape, Mapping) else []
    by_name = dict(zip(names, inputs, strict=True)) if names else {}
    positions = _positions(model, () if names else inputs, by_name)
    layers, counted = [], set()
    for name, module in model.named_modules():
        parameters = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted |= {id(p) for p in parameters}
        if module in maskers or not (parameters or module in positions):
            continue
        size = sum(p.numel() for p in parameters)
        layers.append(_layer(name, module, size, positions.get(module, 0), (masks or {}).get(name)))
    return Cost(tuple(layers))


def _each(input_shape: Any, dtype: Any) -> tuple[list[Any], list[Any]]:
    """The shape and the dtype of every input, in their order."""
    expected = "(C, H, W), or a tuple or a mapping of the shapes of several inputs"
    require_type("cost", "input_shape", input_shape, (tuple, list, Mapping), expected)
    several = isinstance(input_shape, Mapping) or any(
        isinstance(shape, tuple | list) for shape in input_shape
    )
    if not several:
        return [input_shape], [dtype]
    shapes = list(input_shape.values() if isinstance(input_shape, Mapping) else input_shape)
    require(bool(shapes), "cost", "input_shape", "of at least one input", input_shape)
    if isinstance(dtype, Mapping) and isinstance(input_shape, Mapping):
        return shapes, [dtype.get(name) for name in input_shape]
    if not isinstance(dtype, tuple | list):
        return shapes, list(repeat(dtype, len(shapes)))
    require(len(dtype) == len(shapes), "cost", "dtype", f"{len(shapes)} dtypes", dtype)
    return shapes, list(dtype)


def _check_masks(masks: Mapping[str, Tensor], masked: Mapping[str, nn.Module]) -> None:
    require_type("cost", "masks", masks, Mapping, "masks by the name of the layer")
    if unknown := [name for name in masks if name not in masked]:
        expected = "of masked convolutions or linear layers by name"
        refuse("cost", "masks", expected, f"{unknown}, which no such layer is named")
    for name, mask in masks.items():
        weight = tuple(cast("Tensor", masked[name].weight).shape)
        require_tensor("cost", f"masks[{name!r}]", mask)
        shapes = {weight[:2], weight}
        with_tasks = [("T", *shape) for shape in shapes]
        require_shape("cost", f"masks[{name!r}]", mask, *shapes, *with_tasks)


def _layer(
    name: str, module: nn.Module, parameters: int, positions: int, mask: Tensor | None
) -> LayerCost:
    """One row; ``positions`` counts what a single weight is multiplied with in one input."""
    kind = type(module).__name__
    if not isinstance(module, MaskedConv2d):
        weights = sum(weight.numel() for weight in _weights(module))
        pruned: Count = 0
        if mask is not None:
            pruned = weights - _ones(mask != 0, 2)
            pruned = int(pruned) if mask.dim() == 2 else pruned
        macs = positions * weights
        return LayerCost(
            name, kind, parameters, parameters - pruned, macs, macs - positions * pruned
        )
    with torch.no_grad():
        own: Tensor = module.masker(module.weight) if mask is None else mask
    weights, area = module.weight.numel(), math.prod(module.kernel_size)
    if own.dim() < 4:
        kernels = own != 0
        active_weights: Count = _ones(kernels, 2) * area
    else:
        kernels = (own != 0).flatten(-2).any(-1)
        active_weights = _ones(own != 0, 4)
    active_kernels: Count = _ones(kernels, 2)
    if own.dim() in (2, 4):
        active_weights, active_kernels = int(active_weights), int(active_kernels)
    return LayerCost(
        name,
        kind,
        parameters,
        parameters - (weights if parameters else 0) + active_weights * bool(parameters),
        weights * positions,
        active_weights * positions,
        math.prod(module.weight.shape[:2]),
        active_kernels,
    )


def _weights(module: nn.Module) -> list[Tensor]:
    """What a layer multiplies with, without its biases."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return [w for name, w in module.named_parameters() if name.startswith("weight")]
    return [module.weight] if isinstance(module, nn.Conv2d | nn.Linear) else []


def _ones(mask: Tensor, rank: int) -> Tensor:
    """How many entries are set: (), or (T,) for a mask with a task axis."""
    return mask.flatten(mask.dim() - rank).sum(-1)


def _positions(
    model: nn.Module, inputs: Sequence[Tensor], by_name: Mapping[str, Tensor]
) -> dict[nn.Module, int]:
    """How many outputs per output channel, or time steps, each layer makes of an input."""
    positions: dict[nn.Module, int] = {}

    def count(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        while not isinstance(output, Tensor):
            output = output[0]  # of recurrent layers, beside the state; of a packed sequence
        recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase)
        channels = output.shape[-1] if recurrent else cast("Tensor", module.weight).shape[0]
        positions[module] = positions.get(module, 0) + output.numel() // channels

    layers = [m for m in model.modules() if isinstance(m, _COUNTED)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), evaluating(model):
            model(*inputs, **by_name)
    finally:
        for hook in hooks:
            hook.remove()
    return positions


def _counts(c: Cost | LayerCost) -> tuple[str, ...]:
    numbers = (
        *((c.kernels, c.active_kernels) if c.kernels else ("", "")),
        c.parameters,
        c.active_parameters,
        c.macs,
        c.active_macs,
    )
    return tuple(n if isinstance(n, str) else _readable(n) for n in numbers)


def _readable(count: Count) -> str:
    """An integer, or the mean over tasks."""
    return f"{count.double().mean():,.1f}" if isinstance(count, Tensor) else f"{count:,}"
