"""An adapted network in PyTorch's own layers.

The network is copied, each layer of this package gives way to PyTorch's that compute the same, and
where its forward can be traced it becomes a graph of such layers, without code of anyone's.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from metasparse_ext._arguments import require_floating, require_shape
from metasparse_ext.export.copies import copied, settle
from metasparse_ext.export.statistics import fix
from metasparse_ext.nn import BatchNorm2d, FiLM, Linear, MaskedConv2d, NormActPool
from metasparse_ext.nn.resnet12 import max_pool

logger = logging.getLogger("metasparse_ext")

SPATIAL = ((-2, -1), (2, 3), (-1, -2), (3, 2))

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_DROPS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)

# Whose calls a trace keeps whole.
_WHOLE: tuple[Callable[..., Any], ...] = (require_floating, require_shape, max_pool)


def plain_network(
    model: nn.Module, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor], outputs: int
) -> nn.Module:
    """A copy of a network in PyTorch's own layers, with batch statistics in its batch norms.

    Args:
        model: From images to logits; left as it is.
        parameters: Those of one task, by name; the others are the model's own.
        masks: Of its masked convolutions by name, (O, I) or (O, I, kh, kw): pruned weights are 0.
        outputs: How many of the logits are wanted.

    Returns:
        A ``torch.fx.GraphModule`` of layers; where the model's forward cannot be traced, a copy of
        the model with other layers in it. In evaluation mode, without gradients.
    """
    net = copied(model).eval().requires_grad_(False)
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)  # in place: a tensor that two modules share stays one
    settle(net)
    names: dict[nn.Module, str] = {module: name for name, module in net.named_modules()}
    hooked = [n for m, n in names.items() if _maker(type(m)) is not None and not stock(m)]
    if hooked:
        logger.warning("export: hooks on %s are left out", ", ".join(hooked))
    net = _replaced(net, {module: masks.get(name) for module, name in names.items()}, {})
    net = _with_outputs(_traced(net), outputs).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous()
    return net


def stock(layer: nn.Module) -> bool:
    """Whether a layer of PyTorch computes what its class does: nobody has hooked into it."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks)
    return not any(hooks) and "forward" not in vars(layer)


def layer_of(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, if it calls one."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _replaced(
    module: nn.Module, masks: Mapping[nn.Module, Tensor | None], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """The module with PyTorch's own layers in it; one that is shared is replaced once."""
    if module not in done:
        make = _maker(type(module))
        done[module] = module if make is None else make(module, masks[module]).eval()
        if make is None:
            mask = masks[module]
            if isinstance(module, MaskedConv2d) and mask is not None:
                module.weight = _constant(_pruned(module.weight, mask))
            # Not named_children(), which leaves out the second name of a shared module.
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = _replaced(child, masks, done)
    return done[module]


def _maker(kind: type[nn.Module]) -> Callable[[Any, Tensor | None], nn.Module] | None:
    """What makes PyTorch's layer of one of ours, or of a class of one's own with its forward."""
    for base in kind.__mro__:
        if base in _STOCK:
            return _STOCK[base] if kind.forward is base.forward else None
    return None


def _pruned(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight with zeros where the mask, (O, I) or (O, I, kh, kw), has them."""
    pruned = (mask == 0).expand_as(weight) if mask.dim() == 4 else (mask == 0)[..., None, None]
    return weight.masked_fill(pruned, 0)


def _convolution(layer: MaskedConv2d, mask: Tensor | None) -> nn.Module:
    bias = layer.bias if layer.bias_matters else None
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias is not None,
        layer.padding_mode,
        device="meta",
    )
    weight = layer.weight if mask is None else _pruned(layer.weight, mask)
    conv.weight, conv.bias = _constant(weight), None if bias is None else _constant(bias)
    return conv


def _norm(layer: BatchNorm2d | NormActPool, _: Tensor | None = None) -> nn.Module:
    norm = nn.BatchNorm2d(
        layer.num_features, layer.eps, affine=layer.affine, track_running_stats=False, device="meta"
    )
    if layer.affine:
        norm.weight, norm.bias = _constant(layer.weight), _constant(layer.bias)
    return norm


def _norm_act_pool(layer: NormActPool, _: Tensor | None) -> nn.Module:
    parts: dict[str, nn.Module] = {"norm": _norm(layer)}
    if layer.activation == "relu":
        parts["act"] = nn.ReLU()
    if layer.pool:
        parts["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(*(parts[name] for name in layer.order.split("_") if name in parts))


def _linear(layer: Linear, _: Tensor | None) -> nn.Module:
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    linear.weight = _constant(layer.weight)
    if layer.bias is not None:
        linear.bias = _constant(layer.bias)
    return linear


def _modulation(layer: FiLM, _: Tensor | None) -> nn.Module:
    """gamma * x + beta as the batch norm of mean 0 and variance 1, which PyTorch has a layer of."""
    gamma, beta = layer._affine()
    scale = nn.BatchNorm2d(len(gamma), eps=0.0, track_running_stats=False, device="meta")
    scale.weight, scale.bias = _constant(gamma), _constant(beta)
    fix(scale, torch.zeros_like(gamma), torch.ones_like(gamma))
    return scale


_STOCK: dict[type[nn.Module], Callable[[Any, Tensor | None], nn.Module]] = {
    MaskedConv2d: _convolution,
    NormActPool: _norm_act_pool,
    BatchNorm2d: _norm,
    Linear: _linear,
    FiLM: _modulation,
}


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


class _Tracer(fx.Tracer):
    """Keeps the checks of arguments out of the graph, and what a layer can stand for whole."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=_WHOLE)


def _traced(net: nn.Module) -> nn.Module:
    tracer = _Tracer()
    try:
        graph = tracer.trace(net)
        traced = fx.GraphModule(tracer.root, graph, type(net).__name__)
    # A forward of one's own may do anything at all with the stand-ins of a trace, and a layer may
    # have a name that is none in the code of a graph.
    except Exception:
        return net
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in (require_floating, require_shape):
            traced.graph.erase_node(node)
        elif (layers := _layers_for(traced, node)) is not None:
            _put_layers(traced, node, layers)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _layers_for(traced: fx.GraphModule, node: fx.Node) -> Sequence[nn.Module] | None:
    """The layers that compute what a call does to images (N, C, H, W): dropout's is to be none."""
    layer = layer_of(traced, node)
    if isinstance(layer, _DROPOUTS) and type(layer) in _DROPOUTS and stock(layer) and node.args:
        return []
    if node.op not in ("call_function", "call_method"):
        return None
    called, named = node.target, dict(node.kwargs)
    how: tuple[Any, ...] = node.args[1:]
    if named.get("inplace") is False:
        del named["inplace"]
    if called in _DROPS and named.get("training") is False:
        return []
    if called in (F.relu, torch.relu, "relu") and not how and not named:
        return [nn.ReLU()]
    if called is max_pool:
        return [nn.MaxPool2d(2)]
    if called in (torch.flatten, "flatten") and how in ((1,), (-3,)) and not named:
        return [nn.Flatten(how[0])]
    if called in (torch.mean, "mean") and not named and len(how) == 1:
        axes = tuple(how[0]) if isinstance(how[0], (tuple, list)) else how[0]
        if axes in SPATIAL:
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return None


def _put_layers(traced: fx.GraphModule, node: fx.Node, layers: Sequence[nn.Module]) -> None:
    value = node.args[0]
    with traced.graph.inserting_before(node):
        for index, layer in enumerate(layers):
            name = f"{node.name}_{index}" if index else node.name
            while hasattr(traced, name):
                name += "_"
            traced.add_submodule(name, layer)
            value = traced.graph.call_module(name, (value,))
    node.replace_all_uses_with(cast("fx.Node", value))
    traced.graph.erase_node(node)


def _with_outputs(net: nn.Module, outputs: int) -> nn.Module:
    """The network with its first logits alone."""
    if not isinstance(net, fx.GraphModule):
        return _First(net, outputs)
    (output,) = net.graph.find_nodes(op="output")
    logits = output.args[0]
    head = layer_of(net, logits) if isinstance(logits, fx.Node) else None
    called = [node.target for node in net.graph.nodes]
    if type(head) is nn.Linear and called.count(logits.target) == 1:
        if head.out_features > outputs:
            head.weight = _constant(head.weight[:outputs])
            if head.bias is not None:
                head.bias = _constant(head.bias[:outputs])
            head.out_features = outputs
        return net
    with net.graph.inserting_before(output):
        first = (slice(None), slice(outputs))
        output.args = (net.graph.call_function(operator.getitem, (logits, first)),)
    net.recompile()
    return net


class _First(nn.Module):
    """The first logits of a network that could not be traced."""

    def __init__(self, network: nn.Module, outputs: int) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def _get_name(self) -> str:
        return type(self.network).__name__

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[:, : self.outputs]
