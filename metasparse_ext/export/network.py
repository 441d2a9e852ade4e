"""The network of one adapted task as it leaves: in PyTorch's own layers, checked and shrunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from metasparse_ext._arguments import require_tensor
from metasparse_ext.export.agreement import (
    LEAST,
    LEAST_ACROSS_DEVICES,
    one_by_one,
    require_logits,
)
from metasparse_ext.export.channels import without_dead_channels
from metasparse_ext.export.plain import plain_network
from metasparse_ext.export.statistics import INSTEAD, fix_statistics

if TYPE_CHECKING:
    from metasparse_ext.training.trained import AdaptedTask


@torch.no_grad()
def task_network(task: AdaptedTask, transductive: bool) -> nn.Module:
    """What :meth:`~metasparse_ext.training.AdaptedTask.network` returns."""
    networks = task.networks
    images = require_tensor("export", "support.images", task.support.images)
    wanted = networks(images.clone())[0, :, : len(task.classes)].cpu()
    if not bool(wanted.isfinite().all()):
        raise FloatingPointError(
            "export: the adapted network gives numbers that are not finite; fewer adapt_steps or a "
            "smaller inner_lr usually helps"
        )
    parameters = {name: value[0] for name, value in networks.parameters.items()}
    masks = {name: mask[0] for name, mask in networks.masks().items()}
    network = plain_network(networks.model, parameters, masks, len(task.classes)).cpu()
    given, name = images[0].cpu(), type(networks.model).__name__
    # Held against the adapted network whenever something was done to it: a layer of one's own, or
    # a hook, may do anything at all.
    same = "one that PyTorch's own layers can compute"
    least = LEAST if images.is_cpu else LEAST_ACROSS_DEVICES
    wanted = require_logits(lambda: network(given.clone()), wanted, same, name, least=least)
    if not transductive:
        fix_statistics(network, given)
        fixed = "one whose batch statistics can be fixed"
        require_logits(lambda: network(given.clone()), wanted, fixed, name, instead=INSTEAD)
        alone = "one that finds an image the same whatever comes with it"
        require_logits(lambda: one_by_one(network, given), wanted, alone, name, instead=INSTEAD)
    if isinstance(network, fx.GraphModule):
        without_dead_channels(network)
        require_logits(lambda: network(given.clone()), wanted, same, name)
    return network
