"""What the learners' tests share: tiny networks, tasks, and one task's network in plain PyTorch."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext.nn import Conv4

WAYS, SIZE, CHANNELS, WIDTH = 3, 8, 2, 4


class Samples(NamedTuple):
    images: Tensor
    labels: Tensor


class TaskBatch(NamedTuple):
    support: Samples
    query: Samples


def samples(tasks: int, count: int, seed: int) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(
        tasks, count, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64
    )
    return Samples(images, torch.randint(WAYS, (tasks, count), generator=generator))


def batch(tasks: int = 3, seed: int = 0) -> TaskBatch:
    return TaskBatch(samples(tasks, 5, seed), samples(tasks, 7, seed + 1))


class Opaque(nn.Module):
    """Hides that a network understands the task axis, as a user's own class would."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def network(kind: str = "task-aware", seed: int = 0) -> nn.Module:
    """A two-block strided Conv-4 in float64, at random weights and affine parameters."""
    torch.manual_seed(seed)
    net = Conv4(CHANNELS, SIZE, WIDTH, WAYS, blocks=2, dtype=torch.float64)
    with torch.no_grad():
        for block in net.blocks:
            block.norm.weight.uniform_(0.5, 1.5)
            block.norm.bias.uniform_(-0.5, 0.5)
    return net if kind == "task-aware" else Opaque(net)


def leaves(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}


def plain_logits(
    net: nn.Module, parameters: dict[str, Tensor], images: Tensor, masks: list[Tensor] | None = None
) -> Tensor:
    """One task's two-block Conv-4 from ``torch.nn.functional`` alone; masks (O, I) by block."""
    prefix = "net." if isinstance(net, Opaque) else ""
    x = images
    for b in range(2):
        conv, norm = f"{prefix}blocks.{b}.conv", f"{prefix}blocks.{b}.norm"
        weight = parameters[f"{conv}.weight"]
        if masks is not None:
            weight = weight * masks[b][:, :, None, None]
        x = F.conv2d(x, weight, parameters[f"{conv}.bias"], stride=2, padding=1)
        scale, shift = parameters[f"{norm}.weight"], parameters[f"{norm}.bias"]
        x = F.relu(F.batch_norm(x, None, None, scale, shift, training=True))
    return F.linear(
        x.flatten(1), parameters[f"{prefix}head.weight"], parameters[f"{prefix}head.bias"]
    )


def mean_gradients(task_gradient, net: nn.Module, tasks: TaskBatch, *options):
    """Runs a definition task by task: mean gradients by name, and losses and accuracies (T,)."""
    results = [
        task_gradient(
            net,
            Samples(tasks.support.images[t], tasks.support.labels[t]),
            Samples(tasks.query.images[t], tasks.query.labels[t]),
            *options,
        )
        for t in range(len(tasks.support.images))
    ]
    gradients = {
        name: torch.stack([gradient[name] for gradient, *_ in results]).mean(0)
        for name in results[0][0]
    }
    return gradients, *(torch.stack(column) for column in list(zip(*results, strict=True))[1:])
