"""Channels that do nothing leave a network; what they contributed stays.

A channel goes where no kernel reads it, and where none makes it: then it is the same number
everywhere, which the layers up to its readers turn into another one. A zero goes without a trace;
any other number goes into the bias of its readers, or, where they pad with zeros and so see it end
at the border, all such channels go into one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metasparse_ext.export.plain import layer_of, stock

# Layers without parameters that treat each number alone.
_POINTWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    nn.Softplus,
)
# Layers that leave a map of one number a map of that number.
_KEEPS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)


def without_dead_channels(network: fx.GraphModule) -> None:
    """Takes the channels out, in place; the logits stay the same up to rounding."""
    with torch.no_grad():
        while any(_shrink(link) for link in _links(network)):
            pass


@dataclass(frozen=True)
class _Link:
    """A convolution, the layers that follow channel by channel, and the one that reads them."""

    maker: nn.Conv2d
    between: tuple[nn.Module, ...]
    reader: nn.Conv2d | nn.Linear

    @property
    def reads(self) -> Tensor:
        """(outputs, C, K): the reader's weights, by the channel that they read."""
        weight = self.reader.weight
        return weight.view(len(weight), self.maker.out_channels, -1)


def _links(network: fx.GraphModule) -> list[_Link]:
    calls = [node.target for node in network.graph.nodes if node.op == "call_module"]
    found = []
    for node in network.graph.nodes:
        maker = layer_of(network, node)
        if type(maker) is not nn.Conv2d or not stock(maker) or calls.count(node.target) > 1:
            continue
        link = _link(network, maker, node, calls)
        if link is not None:
            found.append(link)
    return found


def _link(
    network: fx.GraphModule, maker: nn.Conv2d, node: fx.Node, calls: list[object]
) -> _Link | None:
    between: list[nn.Module] = []
    while len(node.users) == 1:
        (node,) = node.users
        layer = layer_of(network, node)
        # One that is called elsewhere too would change there.
        if (
            layer is None
            or not stock(layer)
            or (layer.state_dict() and calls.count(node.target) > 1)
        ):
            return None
        flat = any(isinstance(each, nn.Flatten) for each in between)
        if type(layer) is nn.Conv2d:
            alone = maker.groups == layer.groups == 1
            return _Link(maker, tuple(between), layer) if alone and not flat else None
        if type(layer) is nn.Linear:
            whole = layer.in_features % maker.out_channels == 0
            alone = maker.groups == 1
            return _Link(maker, tuple(between), layer) if alone and flat and whole else None
        if flat or not _by_channel(layer):
            return None
        between.append(layer)
    return None


def _by_channel(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Flatten):
        return layer.start_dim in (1, -3) and layer.end_dim == -1
    return type(layer) in (*_POINTWISE, *_KEEPS) or isinstance(layer, _BatchNorm)


def _shrink(link: _Link) -> bool:
    """Takes channels out of a link; whether there were any."""
    unread = (link.reads == 0).all(2).all(0)
    made_of_nothing = (link.maker.weight == 0).flatten(1).all(1) & ~unread
    constants = _constants(link)
    silent = unread | (made_of_nothing & (constants == 0))
    folded = made_of_nothing & ~silent
    if bool((silent | folded).all()):
        silent[0] = folded[0] = False  # a layer needs a channel
    reader = link.reader
    if isinstance(reader, nn.Linear) or reader.padding_mode != "zeros" or _pads_nothing(reader):
        _add_to_bias(link, torch.where(folded, constants, 0))
    elif bool(folded.any()):
        largest = int(torch.where(folded, constants.abs(), -1).argmax())
        share = torch.where(folded, constants / constants[largest], 0)
        joined = torch.einsum("ock,c->ok", link.reads.double(), share)
        reads = link.reads.clone()  # another layer may have the same weight
        reads[:, largest] = joined.to(reads.dtype)
        reader.weight = nn.Parameter(reads.view_as(reader.weight), requires_grad=False)
        folded[largest] = False
    gone = silent | folded
    if not bool(gone.any()):
        return False
    _keep(link, (~gone).nonzero().flatten())
    return True


def _constants(link: _Link) -> Tensor:
    """(C,) float64: what the reader is given of a channel that no kernel makes."""
    maker = link.maker
    weight = maker.weight.double()
    value = weight.new_zeros(len(weight))
    if maker.bias is not None:
        value += maker.bias  # not the bias itself, which an activation in place would change
    for layer in link.between:
        if isinstance(layer, _BatchNorm):
            value = _normalized(layer, value)
        elif type(layer) in _POINTWISE:
            value = layer(value)
    return value


def _normalized(norm: _BatchNorm, value: Tensor) -> Tensor:
    """One number everywhere is its own mean, where the statistics are those of the batch."""
    if norm.running_mean is None or norm.running_var is None:
        value = torch.zeros_like(value)
    else:
        spread = (norm.running_var.double() + norm.eps).sqrt()
        value = (value - norm.running_mean.double()) / spread
    return value if norm.weight is None else value * norm.weight.double() + norm.bias.double()


def _pads_nothing(conv: nn.Conv2d) -> bool:
    return conv.padding in ("valid", (0, 0))


def _add_to_bias(link: _Link, constants: Tensor) -> None:
    """What channels of these constants add to every output of the reader."""
    if not bool(constants.any()):
        return
    reader, added = link.reader, link.reads.double().sum(2) @ constants
    bias = added if reader.bias is None else added + reader.bias.double()
    reader.bias = nn.Parameter(bias.to(reader.weight.dtype), requires_grad=False)


def _keep(link: _Link, kept: Tensor) -> None:
    """Leaves these channels alone in all layers of a link."""
    maker, reader = link.maker, link.reader
    weight = link.reads[:, kept]
    if isinstance(reader, nn.Linear):
        weight = weight.flatten(1)
        reader.in_features = weight.shape[1]
    else:
        weight = weight.unflatten(2, reader.kernel_size)
        reader.in_channels = len(kept)
    reader.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    maker.out_channels = len(kept)
    for layer in (maker, *(each for each in link.between if isinstance(each, _BatchNorm))):
        for name, value in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(value[kept].contiguous(), requires_grad=False))
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(layer, name, buffer[kept] if buffer.dim() else buffer)
        if isinstance(layer, _BatchNorm):
            layer.num_features = len(kept)
