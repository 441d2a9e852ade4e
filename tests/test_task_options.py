"""Options of every learner: chunks of tasks, another loss, another metric."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.plain_tasks import batch, network
from torch import Tensor, nn
from torch.func import functional_call

from metasparse_ext.algorithms import LEARNERS, MAML
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.training import evaluate

OPTIONS = {
    "cavia": {"block": 1},
    "multi-maml": {"distributions": 2},
    "reptile": {"optimizer": "sgd"},
}


def tasks_of(name: str, count: int = 5) -> TaskBatch:
    drawn = batch(count)
    if name != "multi-maml":
        return drawn
    which = torch.arange(count) % 2
    return TaskBatch(*(Samples(s.images, s.labels, which) for s in drawn))


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("name", LEARNERS)
def test_chunks_give_the_meta_gradient_of_all(name, size):
    whole = LEARNERS[name](network(), **OPTIONS.get(name, {}))
    chunked = copy.deepcopy(whole)
    chunked.task_chunk = size
    tasks = tasks_of(name)
    for _ in range(2):  # the second adds to gradients that are there
        expected, found = whole.meta_backward(tasks), chunked.meta_backward(tasks)
    assert chunked.iteration == whole.iteration
    for field in ("loss", "accuracy", "active", "support_loss"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), equal_nan=True)
    for (parameter, a), b in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), parameter
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LEARNERS)
def test_chunks_adapt_as_all_together(name):
    whole = LEARNERS[name](network(), **OPTIONS.get(name, {}))
    chunked = copy.deepcopy(whole)
    chunked.task_chunk = 2
    tasks = tasks_of(name)
    expected, found = whole.adapt(tasks.support), chunked.adapt(tasks.support)
    assert found.tasks == expected.tasks == 5
    assert found.parameters.keys() == expected.parameters.keys()
    images = tasks.query.images
    torch.testing.assert_close(found(images), expected(images), rtol=1e-9, atol=1e-12)
    scores = [evaluate(each, [tasks, tasks], tasks=8).to_dict() for each in (whole, chunked)]
    assert scores[1]["episodes"] == scores[0]["episodes"]
    assert scores[1]["accuracies"] == pytest.approx(scores[0]["accuracies"])
    assert scores[1]["loss"] == pytest.approx(scores[0]["loss"])


def test_a_chunk_that_is_not_finite_changes_nothing():
    learner = MAML(network(), task_chunk=1)
    learner.meta_backward(batch(2))
    before = [p.grad.clone() for p in learner.parameters()]
    spoilt = batch(3)
    spoilt.support.images[2] = torch.nan
    with pytest.raises(FloatingPointError):
        learner.meta_backward(spoilt)
    assert learner.iteration == 1
    assert all(torch.equal(p.grad, g) for p, g in zip(learner.parameters(), before, strict=True))
    learner.meta_backward(batch(2))
    assert learner.iteration == 2


class Curve(nn.Module):
    """A network of a user's own from numbers to numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def sinusoids(tasks: int = 3) -> TaskBatch:
    """y = a sin(x + b), the regression of MAML's paper."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    a, b = uniform(0.1, 5, tasks, 1, 1), uniform(0, torch.pi, tasks, 1, 1)
    xs = uniform(-5, 5, tasks, 5, 1), uniform(-5, 5, tasks, 9, 1)
    return TaskBatch(*(Samples(x, a * torch.sin(x + b)) for x in xs))


def test_regression_equals_a_loop():
    torch.manual_seed(0)
    net, tasks = Curve().double(), sinusoids()
    mean_error = lambda outputs, targets: (outputs - targets).abs().mean()  # noqa: E731
    learner = MAML(net, inner_lr=0.05, inner_steps=2, loss=F.mse_loss, metric=mean_error)
    metrics = learner.meta_backward(tasks)
    losses, errors = [], []
    for x, y, xq, yq in zip(*tasks.support[:2], *tasks.query[:2], strict=True):
        phi = dict(net.named_parameters())
        for _ in range(2):
            loss = F.mse_loss(functional_call(net, phi, (x,)), y)
            slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: p - 0.05 * g for (n, p), g in zip(phi.items(), slopes, strict=True)}
        outputs = functional_call(net, phi, (xq,))
        losses.append(F.mse_loss(outputs, yq))
        errors.append(mean_error(outputs, yq))
    losses = torch.stack(losses)
    expected = torch.autograd.grad(losses.mean(), list(net.parameters()))
    torch.testing.assert_close([p.grad for p in learner.parameters()], list(expected))
    torch.testing.assert_close(metrics.loss, losses.detach())
    torch.testing.assert_close(metrics.accuracy, torch.stack(errors).detach())


@pytest.mark.parametrize("name", ["fomaml", "imaml", "reptile", "maml"])
def test_regression_by_other_learners(name):
    torch.manual_seed(0)
    options = {"inner_lr": 0.02, **OPTIONS.get(name, {})}
    learner = LEARNERS[name](Curve().double(), loss=F.mse_loss, **options)
    metrics = learner.meta_backward(sinusoids())
    assert metrics.accuracy.isnan().all()
    assert (metrics.support_loss < 30).all()
    adapted = learner.adapt(sinusoids().support)
    assert adapted(sinusoids().query.images).shape == (3, 9, 1)


@pytest.mark.parametrize("name", ["anil", "convex-imaml"])
def test_a_convex_head_has_its_own_loss(name):
    with pytest.raises(
        ValueError, match="expected loss to be None: the inner problem is a softmax"
    ):
        LEARNERS[name](network(), loss=F.mse_loss)


def test_refusals():
    with pytest.raises(ValueError, match="Reptile: expected task_chunk to be None: the moments"):
        LEARNERS["reptile"](network(), optimizer="adam", task_chunk=2)
    with pytest.raises(ValueError, match="MAML: expected task_chunk to be at least 1, got 0"):
        MAML(network(), task_chunk=0)
    with pytest.raises(TypeError, match="MAML: expected loss to be a function"):
        MAML(network(), loss="mse")
    learner = MAML(Curve().double(), loss=lambda outputs, targets: outputs - targets)
    with pytest.raises(ValueError, match="expected loss to be a function to one number"):
        learner.meta_backward(sinusoids())
