"""A pruned kernel stays pruned: no learner moves it, in the inner loop or in the outer."""

import pytest
import torch
from support.plain_tasks import batch, network
from torch import nn

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.nn import FixedMask, MaskedConv2d, ResNet12

# Those whose masks are their own.
OTHERS = {"metadock", "mmsup", "meta-ticket"}


def resnet():
    return ResNet12(2, 16, (2, 3, 2, 3), 3, dtype=torch.float64)


def pruned(net: nn.Module, granularity: str) -> dict[str, torch.Tensor]:
    """Masks half of every convolution, and says by weight name what is pruned."""
    gone = {}
    for name, layer in net.named_modules():
        if isinstance(layer, MaskedConv2d):
            shape = layer.weight.shape[:2] if granularity == "kernel" else layer.weight.shape
            mask = (torch.arange(shape.numel()) % 2).view(shape)
            layer.masker = FixedMask(mask)
            whole = mask if granularity == "weight" else mask[:, :, None, None]
            gone[f"{name}.weight"] = (whole == 0).expand(layer.weight.shape)
    return gone


@pytest.mark.parametrize("backbone", [network, resnet], ids=["conv4", "resnet12"])
@pytest.mark.parametrize("granularity", ["kernel", "weight"])
@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in OTHERS])
def test_pruned_weights_are_never_moved(name, granularity, backbone):
    net, tasks = backbone(), batch()
    if backbone is resnet:
        tasks = type(tasks)(*(s._replace(images=s.images.repeat(1, 1, 1, 2, 2)) for s in tasks))
    gone = pruned(net, granularity)
    options = {"block": 1} if name == "cavia" else {}
    learner = LEARNERS[name](net, **options)
    metrics = learner.meta_backward(tasks)
    adapted = learner.adapt(tasks.support)
    for weight, where in gone.items():
        start = net.get_parameter(weight).detach()
        moved = adapted.parameters.get(weight, start.expand(3, *start.shape))
        assert torch.equal(moved[:, where], start[where].expand(3, -1))
        if name == "multi-maml":
            gradient = learner.layout.unflatten(learner.initializations.grad[0])[weight]
        else:
            gradient = net.get_parameter(weight).grad
        assert not gradient[where].any()
        assert gradient[~where].any()
    if granularity == "kernel":
        assert (metrics.active < 0.6).all()
