"""The network of one adapted task as it leaves: in PyTorch's own layers, checked and shrunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from metasparse_ext._arguments import refuse, require_tensor
from metasparse_ext.export.channels import without_dead_channels
from metasparse_ext.export.plain import freeze, measured, plain_network

if TYPE_CHECKING:
    from metasparse_ext.training.trained import AdaptedTask

# The most that logits may differ from those of the adapted network, beside the largest of them:
# rounding, which batch norm magnifies where a channel hardly varies.
_TOLERANCE = 1e-3


@torch.no_grad()
def task_network(task: AdaptedTask, transductive: bool) -> nn.Module:
    """What :meth:`~metasparse_ext.training.AdaptedTask.network` returns."""
    networks = task.networks
    images = require_tensor("export", "support.images", task.support.images)
    parameters = {name: value[0] for name, value in networks.parameters.items()}
    masks = {name: mask[0] for name, mask in networks.masks().items()}
    network = plain_network(networks.model, parameters, masks, len(task.classes)).cpu()
    with measured(network) as statistics:
        found = network(images[0].cpu())
    _require_same(network, found, networks(images)[0, :, : len(task.classes)].cpu())
    if not transductive:
        freeze(statistics)
    if isinstance(network, fx.GraphModule):
        without_dead_channels(network)
    return network


def _require_same(network: nn.Module, found: Tensor, wanted: Tensor) -> None:
    """Refuses a network that is not the adapted one, whatever layers of one's own did to it."""
    if not bool(wanted.isfinite().all()):
        raise FloatingPointError(
            "export: the adapted network gives numbers that are not finite; fewer adapt_steps or a "
            "smaller inner_lr usually helps"
        )
    difference = float((found - wanted).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(wanted.abs().max())):
        got = f"{type(network).__name__}, whose logits differ by {difference:.2g}"
        refuse("export", "the network", "one that PyTorch's own layers can compute", got)
