"""Networks of one's own, and a meta-gradient by PyTorch alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metasparse_ext.algorithms import MetaLearner
from metasparse_ext.data import Samples, TaskBatch

TASKS, COUNT, WAYS, LENGTH, FEATURES = 3, 4, 3, 5, 6
RATE, STEPS = 0.1, 2


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(FEATURES, 7, batch_first=True)
        self.head = nn.Linear(7, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(FEATURES, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(FEATURES, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Two(nn.Module):
    """Of one input or two, to one output or two."""

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(LENGTH * FEATURES, 2 * WAYS))
        self.kind = kind

    def forward(self, x: Tensor, shift: Tensor | float = 0.0) -> dict[str, Tensor] | tuple:
        one, two = self.net(x + shift).chunk(2, -1)
        return {"one": one, "two": two, "none": None} if self.kind is dict else (one, two)


class Summed(Two):
    def forward(self, x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        one, two, _ = super().forward(x, shift).values()
        return one + 2 * two


def largest(gradient: Tensor) -> Tensor:
    """Drops what is below the average, which other tasks would move."""
    return gradient * (gradient.abs() >= gradient.abs().mean())


def samples(seed: int, scale: float = 1.0) -> Samples:
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.arange(COUNT).remainder(WAYS).expand(TASKS, -1)
    shape = (TASKS, COUNT, LENGTH, FEATURES)
    return Samples(scale * torch.randn(shape, generator=drawn, dtype=torch.float64), labels)


def batch() -> TaskBatch:
    return TaskBatch(samples(1), samples(2))


def meta_gradient(model: nn.Module, tasks: TaskBatch, *, first_order: bool) -> dict[str, Tensor]:
    """MAML as in its paper: task by task, with PyTorch alone."""
    own = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    total = 0.0
    for task in range(TASKS):
        fast = own
        for _ in range(STEPS):
            logits = functional_call(model, fast, (tasks.support.images[task],))
            loss = F.cross_entropy(logits, tasks.support.labels[task])
            slopes = torch.autograd.grad(
                loss, list(fast.values()), create_graph=not first_order, allow_unused=True
            )
            fast = {
                name: p if slope is None else p - RATE * slope
                for (name, p), slope in zip(fast.items(), slopes, strict=True)
            }
        logits = functional_call(model, fast, (tasks.query.images[task],))
        total = total + F.cross_entropy(logits, tasks.query.labels[task]) / TASKS
    found = torch.autograd.grad(total, list(own.values()), materialize_grads=True)
    return dict(zip(own, found, strict=True))


def assert_gradient(learner: MetaLearner, expected: dict[str, Tensor]) -> None:
    for name, parameter in learner.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-11)
