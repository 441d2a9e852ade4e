"""An adapted network in PyTorch's own layers.

The network is copied, each layer of this package gives way to PyTorch's that compute the same, and
where its forward can be traced it becomes a graph of such layers, without code of anyone's.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metasparse_ext._arguments import require_floating, require_shape
from metasparse_ext.nn import BatchNorm2d, FiLM, Linear, MaskedConv2d, NormActPool
from metasparse_ext.nn.resnet12 import max_pool

SPATIAL = ((-2, -1), (2, 3), (-1, -2), (3, 2))

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
    net = copy.deepcopy(model).eval().requires_grad_(False)
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)  # in place: a tensor that two modules share stays one
    names: dict[nn.Module, str] = {module: name for name, module in net.named_modules()}
    net = _replaced(net, {module: masks.get(name) for module, name in names.items()}, {})
    net = _with_outputs(_traced(net), outputs).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous()
    return net


@contextmanager
def measured(network: nn.Module) -> Iterator[dict[_BatchNorm, tuple[Tensor, Tensor]]]:
    """Collects mean and variance (C,) of what each batch norm of the batch is given meanwhile."""
    found: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}

    def measure(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].detach().double().transpose(0, 1).flatten(1)
        found[cast("_BatchNorm", norm)] = values.mean(1), values.var(1, correction=0)

    hooks = [norm.register_forward_pre_hook(measure) for norm in batch_norms(network)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def freeze(statistics: Mapping[_BatchNorm, tuple[Tensor, Tensor]]) -> None:
    """Gives batch norms fixed statistics, so that each image is classified by itself."""
    for norm, (mean, variance) in statistics.items():
        _fix(norm, mean, variance)


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch norms that take the statistics of the batch."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]


def layer_of(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls, if it calls one."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _replaced(
    module: nn.Module, masks: Mapping[nn.Module, Tensor | None], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """The module with PyTorch's own layers in it; one that is shared is replaced once."""
    if module not in done:
        # By the very type: a class of one's own may compute something else.
        make = _STOCK.get(type(module))
        done[module] = module if make is None else make(module, masks[module]).eval()
        if make is None:
            # Not named_children(), which leaves out the second name of a shared module.
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = _replaced(child, masks, done)
    return done[module]


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
    weight = layer.weight
    if mask is not None:
        pruned = (mask == 0).expand_as(weight) if mask.dim() == 4 else (mask == 0)[..., None, None]
        weight = weight.masked_fill(pruned, 0)
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
    _fix(scale, torch.zeros_like(gamma), torch.ones_like(gamma))
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


def _fix(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    like = mean if norm.weight is None else norm.weight
    norm.track_running_stats = True
    norm.running_mean, norm.running_var = mean.to(like), variance.to(like)
    norm.num_batches_tracked = torch.zeros((), dtype=torch.int64)


class _Tracer(fx.Tracer):
    """Keeps the checks of arguments out of the graph, and what a layer can stand for whole."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=_WHOLE)


def _traced(net: nn.Module) -> nn.Module:
    tracer = _Tracer()
    try:
        graph = tracer.trace(net)
    # A forward of one's own may do anything at all with the stand-ins of a trace.
    except Exception:
        return net
    traced = fx.GraphModule(tracer.root, graph, type(net).__name__)
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in (require_floating, require_shape):
            traced.graph.erase_node(node)
        elif (layers := _layers_for(node)) is not None:
            _put_layers(traced, node, layers)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _layers_for(node: fx.Node) -> Sequence[nn.Module] | None:
    """The layers that compute what a call of a function does to images (N, C, H, W)."""
    if node.op not in ("call_function", "call_method"):
        return None
    called, named = node.target, dict(node.kwargs)
    how: tuple[Any, ...] = node.args[1:]
    if named.get("inplace") is False:
        del named["inplace"]
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

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[:, : self.outputs]
