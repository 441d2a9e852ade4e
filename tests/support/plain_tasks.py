"""What the learners' tests share: tiny networks, tasks, and one task's network in plain PyTorch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4

WAYS, SIZE, CHANNELS, WIDTH = 3, 8, 2, 4


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


def plain_rates(learner) -> tuple[Tensor, Callable[[int], dict[str, Tensor]]]:
    """A learner's learned rates as a leaf, and from a step to the rates by parameter name."""
    values = learner.learned_rates.values.detach().clone().requires_grad_()
    like = dict(learner.model.named_parameters())

    def at(k: int) -> dict[str, Tensor]:
        if learner.learned_rates.kind == "parameter":
            return named(values, like)
        return dict(zip(like, values[min(k, len(values) - 1)], strict=True))

    return values, at


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


def assert_same_gradients(net: nn.Module, expected: dict[str, Tensor]) -> None:
    """``.grad`` of every parameter equals the definition to 1e-9 of its norm.

    The bias of a convolution before a batch norm has no effect, and a gradient of rounding errors:
    it is held to the norm of the whole gradient.
    """
    assert expected.keys() == {name for name, _ in net.named_parameters()}
    whole = flat(expected).norm()
    for name, parameter in net.named_parameters():
        size = whole if name.endswith("conv.bias") else expected[name].norm()
        error = (parameter.grad - expected[name]).norm() / size
        assert size > 0, name
        assert error <= 1e-9, f"{name}: relative error {error:.1e}"


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


def named(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = vector.split([t.numel() for t in like.values()])
    return {n: p.view_as(t) for (n, t), p in zip(like.items(), parts, strict=True)}


def hessian(loss: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Reverse over reverse: forward mode through PyTorch's batch norm gives another matrix."""
    return torch.func.jacrev(torch.func.grad(loss))(point)


def plain_cg(matrix: Tensor, b: Tensor, steps: int) -> Tensor:
    """Textbook conjugate gradients from zero; refuses a matrix that is not positive definite."""
    assert torch.linalg.eigvalsh(matrix)[0] > 0
    x, r, p = torch.zeros_like(b), b, b
    for _ in range(steps):
        q = matrix @ p
        alpha = r @ r / (p @ q)
        x, new = x + alpha * p, r - alpha * q
        p, r = new + new @ new / (r @ r) * p, new
    return x


def implicit_matrix(hessian: Tensor, mode: str, lam: float) -> Tensor:
    """The official code's 2 I + H / (lambda + 10), or the paper's I + H / lambda."""
    eye = torch.eye(len(hessian), dtype=hessian.dtype)
    return 2 * eye + hessian / (lam + 10) if mode == "official" else eye + hessian / lam
