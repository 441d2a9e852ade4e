"""The sparse file of an adapted network: values where they are not zero, and bits that say where.

A graph of known layers is JSON; of each weight the file keeps the kernels that are in use and one
bit a kernel, or, where that takes less, the weights that are not zero and one bit a weight. Other
tensors, and weights of which nothing is pruned, are kept whole.
"""

from __future__ import annotations

import json
import keyword
import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from metasparse_ext import _sealed as sealed
from metasparse_ext._arguments import refuse, require_path
from metasparse_ext.export.agreement import agree, reason
from metasparse_ext.export.plain import layer_of, stock
from metasparse_ext.export.task import ExportedTask
from metasparse_ext.nn import FixedMask, sparsify
from metasparse_ext.training.checkpoint import CheckpointError

FORMAT = "metasparse network 1"

# The layers that a file may name, with the attributes that their constructors take: all that change
# what a layer computes. What a file does not have, as those of earlier versions, has its default.
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "conv": (nn.Conv2d, (*_CONV, "bias", "padding_mode")),
    "linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "batch_norm": (nn.BatchNorm2d, ("num_features", "eps", "affine", "track_running_stats")),
    "max_pool": (nn.MaxPool2d, _POOL),
    "adaptive_pool": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "flatten": (nn.Flatten, ("start_dim", "end_dim")),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope", "inplace")),
    "elu": (nn.ELU, ("alpha", "inplace")),
    "gelu": (nn.GELU, ("approximate",)),
    "relu": (nn.ReLU, ("inplace",)),
    "silu": (nn.SiLU, ("inplace",)),
    "sigmoid": (nn.Sigmoid, ()),
    "tanh": (nn.Tanh, ()),
    "identity": (nn.Identity, ()),
}
# A file may not ask for more numbers than this, whatever its size.
_MOST = 1 << 28
_ACTIVE = "#active"
# PyTorch refuses settings of layers, and tensors that do not fit them, in RuntimeErrors.
_ERRORS = (*sealed.ERRORS, RuntimeError, AttributeError, OverflowError)
_ELSE = "; --to torch takes any"


def to_bytes(network: nn.Module, settings: Mapping[str, str]) -> bytes:
    """The file of a network in PyTorch's own layers, and of text about it.

    Raises:
        ValueError: If it has other layers than a file may name.
    """
    if not isinstance(network, fx.GraphModule):
        refuse(
            "export", "the network", "one whose forward can be traced", network._get_name() + _ELSE
        )
    tensors: dict[str, Tensor] = {}
    shapes = {
        name: list(value.shape)
        for name, value in network.state_dict().items()
        if _pack(name, value, tensors)
    }
    text = {"graph": json.dumps(_steps(network)), "shapes": json.dumps(shapes)}
    return sealed.to_bytes(tensors, {**settings, **text, "format": FORMAT})


def load_sparse(path: str | Path) -> ExportedTask:
    """Reads a network that ``metasparse export --to metasparse`` wrote. No code of the file is run.

    Args:
        path: The file.

    Returns:
        The network, whose convolutions skip pruned kernels, and what classifies images by it.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
        TypeError, ValueError: If path cannot be one.

    Example:
        >>> task = metasparse_ext.load_sparse("pets.metasparse")
        >>> task.classify("pet.png")[0].label
        'cat'
    """
    path = require_path("load_sparse", "path", path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        network, settings = from_bytes(path.read_bytes())
        return ExportedTask.of(network, settings)
    except _ERRORS as error:
        raise CheckpointError(f"{path}: not a whole network ({reason(error)})") from error


def require_read(data: bytes, network: fx.GraphModule, images: Tensor) -> None:
    """Reads a file again and holds what each of its layers makes of images against the network.

    Args:
        data: What :func:`to_bytes` wrote.
        network: The one that was written.
        images: (N, C, H, W).

    Raises:
        ValueError: Naming the first layer that makes something else.
    """
    expected = "one that load_sparse reads as it is"
    try:
        again, text = from_bytes(data)
        ExportedTask.of(again, text)
        found = _Recorder(again).recorded(images)
    except _ERRORS as error:
        refuse("export", "the network", expected, f"{reason(error)}{_ELSE}")
    wanted = _Recorder(network).recorded(images)
    for (node, made), (_, read) in zip(wanted, found, strict=True):
        if not agree(read, made):
            got = f"one whose {_called(network, node)} would give other numbers{_ELSE}"
            refuse("export", "the network", expected, got)


class _Recorder(fx.Interpreter):
    """Keeps what each step of a graph makes."""

    def recorded(self, images: Tensor) -> list[tuple[fx.Node, Tensor]]:
        self._made: list[tuple[fx.Node, Tensor]] = []
        with torch.no_grad():
            self.run(images.clone())
        return self._made

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        self._made.append((n, made.clone()))  # a later step may change it in place
        return made


def from_bytes(data: bytes) -> tuple[fx.GraphModule, Mapping[str, Any]]:
    """The network that :func:`to_bytes` wrote, with masked convolutions, and the text about it.

    Raises:
        Those of ``_ERRORS``: for anything else.
    """
    tensors, text = sealed.from_bytes(data, FORMAT)
    shapes = json.loads(text["shapes"])
    state = {
        name: _unpack(name, tensors, shapes.get(name))
        for name in tensors
        if not name.endswith(_ACTIVE)
    }
    network = _network(json.loads(text["graph"]))
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    sparsify(network, lambda weight: FixedMask(_used(weight)), inplace=True)
    return network, text


def _used(weight: Tensor) -> Tensor:
    """Which kernels are in use; weights pruned within one are zeros."""
    return (weight != 0).flatten(2).any(2)


# The tensors.


def _pack(name: str, value: Tensor, tensors: dict[str, Tensor]) -> bool:
    """Keeps a tensor by what is not zero in it, if that is smaller than all of it."""
    value = value.detach().cpu().contiguous()
    entries = value != 0
    sizes = {"whole": value.numel() * value.element_size()}
    kernels = entries
    if value.dim() == 4:
        kernels = entries.flatten(2).any(2)
        used = int(kernels.sum()) * value[0, 0].numel() if value.numel() else 0
        sizes["kernels"] = used * value.element_size() + -(-kernels.numel() // 8)
    if value.dim() > 1:
        sizes["entries"] = int(entries.sum()) * value.element_size() + -(-entries.numel() // 8)
    least = min(sizes, key=sizes.__getitem__)
    if least == "whole":
        tensors[name] = value.clone()
        return False
    active = kernels if least == "kernels" else entries
    bits = np.packbits(active.flatten().numpy())
    tensors[name], tensors[name + _ACTIVE] = value[active].clone(), torch.from_numpy(bits)
    return True


def _unpack(name: str, tensors: Mapping[str, Tensor], shape: Any) -> Tensor:
    value = tensors[name]
    if shape is None:
        return value
    if not all(type(size) is int and size > 0 for size in shape) or math.prod(shape) > _MOST:
        raise ValueError(f"{name}: {shape} is no shape of a weight")
    by_kernel = value.dim() == 3
    of = shape[:2] if by_kernel else shape
    bits, count = tensors[name + _ACTIVE], math.prod(of)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise ValueError(f"{name}: its bits are not those of {shape}")
    active = torch.from_numpy(np.unpackbits(bits.numpy(), count=count)).bool().view(of)
    if list(value.shape) != [int(active.sum()), *(shape[2:] if by_kernel else ())]:
        raise ValueError(f"{name}: its values are not those of its bits")
    whole = value.new_zeros(shape)
    whole[active] = value
    return whole


# The graph: one step a layer, each with the steps whose results it takes.


def _steps(network: fx.GraphModule) -> list[dict[str, Any]]:
    kinds = {kind: name for name, (kind, _) in _LAYERS.items()}
    steps: list[dict[str, Any]] = []
    numbers: dict[fx.Node, int] = {}
    for node in network.graph.nodes:
        layer = layer_of(network, node)
        takes = [numbers[each] for each in node.all_input_nodes]
        if node.op == "placeholder" and not steps:
            steps.append({"kind": "images"})
        elif layer is not None and type(layer) in kinds and stock(layer) and _takes_one(node):
            kind = kinds[type(layer)]
            settings = {key: _setting(layer, key) for key in _LAYERS[kind][1]}
            step = {"kind": kind, "name": str(node.target), "settings": settings}
            steps.append({**step, "takes": takes})
        elif _adds(node) and len(takes) == 2:
            steps.append({"kind": "add", "takes": takes})
        elif node.target is operator.getitem and _first(node.args[1]) is not None:
            steps.append({"kind": "first", "count": _first(node.args[1]), "takes": takes})
        elif node.op == "output" and len(takes) == 1:
            steps.append({"kind": "logits", "takes": takes})
        else:
            expected = f"one of the layers that a file may name ({', '.join(_LAYERS)})"
            refuse("export", "the network", expected, f"{_called(network, node)}{_ELSE}")
        numbers[node] = len(steps) - 1
    return steps


def _takes_one(node: fx.Node) -> bool:
    return len(node.args) == len(node.all_input_nodes) == 1 and not node.kwargs


def _adds(node: fx.Node) -> bool:
    return node.target in (operator.add, torch.add) and len(node.args) == 2 and not node.kwargs


def _called(network: fx.GraphModule, node: fx.Node) -> str:
    """A step in words: the layer's class and name, or the function and what it is called with."""
    layer = layer_of(network, node)
    if layer is not None:
        hooked = "" if stock(layer) else " with hooks or a forward of its own"
        return f"{type(layer).__name__} ({node.target}){hooked}"
    how = f" with {', '.join(node.kwargs)}" if node.kwargs else ""
    return f"{getattr(node.target, '__name__', node.target)}{how}"


def _first(index: Any) -> int | None:
    """The number of logits that an index leaves, if it is one of the first ones."""
    if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)):
        return None
    stop = getattr(index[1], "stop", None)
    return stop if type(stop) is int and index[1] == slice(stop) else None


def _setting(layer: nn.Module, key: str) -> Any:
    value = getattr(layer, key)
    return value is not None if key == "bias" else value


def _network(steps: list[dict[str, Any]]) -> fx.GraphModule:
    """The network of the steps, its tensors without memory."""
    root, graph = nn.Module(), fx.Graph()
    made: list[fx.Node] = []
    for step in steps:
        kind, takes = step["kind"], [made[_number(n, len(made))] for n in step.get("takes", ())]
        if kind == "images":
            made.append(graph.placeholder("images"))
        elif kind == "add":
            made.append(graph.call_function(operator.add, (takes[0], takes[1])))
        elif kind == "first":
            index = (slice(None), slice(_number(step["count"], _MOST)))
            made.append(graph.call_function(operator.getitem, (takes[0], index)))
        elif kind == "logits":
            made.append(graph.output(takes[0]))
        else:
            _add_layer(root, step)
            made.append(graph.call_module(step["name"], (takes[0],)))
    graph.lint()
    return fx.GraphModule(root, graph, "ExportedNetwork")


def _number(number: Any, below: int) -> int:
    """A number that a file names: that of an earlier step, or a count."""
    if type(number) is not int or not 0 <= number < below:
        raise ValueError(f"{number!r} is not from 0 to {below - 1}")
    return number


def _add_layer(root: nn.Module, step: dict[str, Any]) -> None:
    kind: Callable[..., nn.Module]
    kind, names = _LAYERS[step["kind"]]
    settings: dict[str, Any] = step["settings"]
    if not settings.keys() <= set(names):
        raise ValueError(f"{step['kind']}: expected settings {', '.join(names)}")
    if any(_too_large(value) for value in settings.values()):
        raise ValueError(f"{step['kind']}: settings out of range")
    *parents, last = step["name"].split(".")
    if not all(map(_is_name, (*parents, last))):
        raise ValueError(f"{step['name']!r} is no name of a layer")
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    place: dict[str, Any] = (
        {"device": "meta"} if kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d) else {}
    )
    module = root
    for part in parents:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if last not in module._modules:
        module.add_module(last, kind(**settings, **place))


def _is_name(part: str) -> bool:
    """Whether a layer can have the name: torch.fx writes it into code, within quotes or bare."""
    quoted = part.isprintable() and not set(part) & set("\"'\\")
    return bool(part) and quoted and not keyword.iskeyword(part)


def _too_large(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return any(isinstance(n, (int, float)) and not -_MOST < n < _MOST for n in numbers)
