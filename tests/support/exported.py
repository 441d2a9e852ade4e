"""A run with an adapted task of it, and networks with pruned kernels, for tests of what leaves."""

import torch
from torch import Tensor, nn

from metasparse_ext.algorithms import MAML
from metasparse_ext.data import Samples
from metasparse_ext.data.given import ImageReader
from metasparse_ext.nn import FixedMask, MaskedConv2d
from metasparse_ext.training.trained import AdaptedTask


def adapted(model: nn.Module) -> AdaptedTask:
    """A task of 3 classes by 4 images (3, 12, 12), to which a network was adapted in one step."""
    labels = torch.arange(3).repeat_interleave(4)[None]
    support = Samples(torch.rand(1, 12, 3, 12, 12) + 0.2 * labels[..., None, None, None], labels)
    networks = MAML(model, inner_lr=0.1, inner_steps=1).eval().adapt(support)
    return AdaptedTask(("a", "b", "c"), networks, support, ImageReader((3, 12, 12)), {})


def task_images(classes, shots=2, queries=3, ways=3) -> tuple[dict[str, Tensor], Tensor]:
    """Support images by class, and query images of every class in turn, uint8."""
    support = {
        classes.class_names[index]: torch.from_numpy(classes[index][:shots].copy())
        for index in range(ways)
    }
    query = [torch.from_numpy(classes[i][shots : shots + queries].copy()) for i in range(ways)]
    return support, torch.cat(query)


def prune(net: nn.Module, density: float, *, dead: bool = True) -> nn.Module:
    """Gives every convolution a random mask of its kernels, and every bias random numbers.

    With ``dead``, some rows and columns of each mask are empty: channels that no kernel makes or
    reads.
    """
    for module in net.modules():
        if isinstance(module, MaskedConv2d):
            mask = torch.zeros(module.weight.shape[:2])
            mask.view(-1)[torch.randperm(mask.numel())[: round(density * mask.numel())]] = 1
            if dead:
                mask[::3] = 0
                mask[:, 1::4] = 0
            module.masker = FixedMask(mask)
        if isinstance(getattr(module, "bias", None), Tensor):
            nn.init.normal_(module.bias)
    return net.eval()


def masks_of(net: nn.Module) -> dict[str, Tensor]:
    """The masks by the name of the layer."""
    return {
        name: module.masker(module.weight)
        for name, module in net.named_modules()
        if isinstance(module, MaskedConv2d)
    }


def numbers(net: nn.Module) -> int:
    """How many numbers a network has."""
    return sum(value.numel() for value in net.state_dict().values())
