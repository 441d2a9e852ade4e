"""Whole meta-steps against peers: ``python -m benchmarks.meta_steps [--quick] [--threads N]``.

MAML is held against learn2learn where it is installed (else against the same loop over tasks
written with torch.autograd), MetaDOCK against the procedure of its public code in stock PyTorch, on
the same tasks, with the same weights: both sides must arrive at the same meta-gradient before a
time is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks import metadock_peer, peers
from benchmarks.command import Group, run_benchmark
from benchmarks.harness import Row, interleave, verify
from metasparse_ext.algorithms import MAML, MetaDOCK
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4, FixedMask, MaskedConv2d

# Both sides are compared in float64: five float32 steps, second order, differ by 1e-3 from the
# order of summation alone.
BOUND = 1e-9


Side = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class MamlStep:
    """Five inner steps, second order, 5-way 1-shot, 15 queries a class."""

    backbone: str
    size: int
    channels: int
    width: int
    density: float
    tasks: int = 4
    steps: int = 5
    inner_lr: float = 0.05

    def network(self) -> Conv4:
        torch.manual_seed(0)
        strided = self.backbone == "strided"
        net = Conv4(self.channels, self.size, self.width, ways=5, strided=strided)
        for layer in net.modules():
            # The first layer stays whole: a channel with no kernel left is constant, and its batch
            # norm then sits on the kink of the ReLU, where rounding alone decides the gradient.
            if isinstance(layer, MaskedConv2d) and layer.in_channels == self.width:
                kept = torch.rand(layer.weight.shape[:2]) < self.density
                layer.masker = FixedMask(kept.float())
        return net

    def batch(self, dtype: torch.dtype) -> TaskBatch:
        return random_tasks(self.tasks, 1, 15, (self.channels, self.size, self.size), dtype)


def random_tasks(
    tasks: int, shots: int, queries: int, image: tuple[int, int, int], dtype: torch.dtype
) -> TaskBatch:
    """Five classes of noise: arithmetic does not mind."""
    torch.manual_seed(1)

    def samples(each: int) -> Samples:
        labels = torch.arange(5).repeat_interleave(each).expand(tasks, -1)
        return Samples(torch.rand(tasks, 5 * each, *image).to(dtype), labels)

    return TaskBatch(samples(shots), samples(queries))


def run_maml(case: MamlStep, budget: float) -> Row:
    name = "learn2learn" if peers.HAS_LEARN2LEARN else "torch loop"
    double = _maml_sides(case, name, torch.float64)
    error = verify(str(case), *(torch.cat([g.flatten() for g in run()]) for run in double), BOUND)
    ours, peer = _maml_sides(case, name, torch.float32)
    timings = interleave({"ours": ours, name: peer}, budget=budget, most=30)
    return Row("maml", asdict(case), error, timings.pop("ours"), timings)


def _maml_sides(case: MamlStep, peer: str, dtype: torch.dtype) -> tuple[Side, Side]:
    net, batch = case.network().to(dtype), case.batch(dtype)
    twin = peers.stock_twin(net).to(dtype)
    learner = MAML(net, inner_lr=case.inner_lr, inner_steps=case.steps)
    run = peers.learn2learn_maml if peer == "learn2learn" else peers.stock_maml

    def ours() -> list[Tensor]:
        learner.zero_grad(set_to_none=True)
        learner.meta_backward(batch)
        return [p.grad for p in learner.parameters()]

    return ours, lambda: run(twin, batch, case.inner_lr, case.steps)


@dataclass(frozen=True)
class MetaDockStep:
    """The pruning iteration of CIFAR-FS 5-way 5-shot: 16 inner steps, 5 of conjugate gradients."""

    density: float
    backbone: str = "strided"
    size: int = 32
    channels: int = 3
    width: int = 64
    tasks: int = 4
    steps: int = 16

    def learner(self, dtype: torch.dtype) -> MetaDOCK:
        """Half-way through its ramp, with this fraction of the kernels in use."""
        torch.manual_seed(0)
        net = Conv4(self.channels, self.size, self.width, ways=5)
        learner = MetaDOCK(net, inner_lr=5e-3, inner_steps=self.steps, total_iterations=2)
        with torch.no_grad():
            for scores in learner._meta_scores().values():
                scores.copy_(torch.rand_like(scores) - (1 - self.density))
                scores[:, 0] = 0.5  # no channel without a kernel, see MamlStep
        learner.iteration.fill_(1)
        return learner.to(dtype)


def run_metadock(case: MetaDockStep, budget: float) -> Row:
    error = verify(str(case), *(side() for side in _metadock_sides(case, torch.float64)), BOUND)
    ours, peer = _metadock_sides(case, torch.float32)
    name = "official procedure"
    timings = interleave({"ours": ours, name: peer}, budget=budget, least=3, most=10)
    return Row("metadock", asdict(case), error, timings.pop("ours"), timings)


def _metadock_sides(case: MetaDockStep, dtype: torch.dtype) -> tuple[Callable[[], Tensor], ...]:
    learner = case.learner(dtype)
    batch = random_tasks(case.tasks, 5, 5, (case.channels, case.size, case.size), dtype)
    names = [name for name, _ in learner.named_parameters()]

    def ours() -> Tensor:
        learner.zero_grad(set_to_none=True)
        learner.iteration.fill_(1)
        learner.meta_backward(batch)
        return torch.cat([p.grad.flatten() for p in learner.parameters()])

    def peer() -> Tensor:
        learner.iteration.fill_(1)
        gradients = metadock_peer.meta_gradient(learner, batch)
        return torch.cat([gradients[name].flatten() for name in names])

    return ours, peer


def maml_grid(quick: bool) -> Iterator[MamlStep]:
    shapes = [("strided", 28, 1, 64), ("strided", 32, 3, 64)]
    if not quick:
        shapes.append(("pooled", 84, 3, 32))
    for shape in shapes:
        for density in (1.0, 0.5):
            yield MamlStep(*shape, density)


def metadock_grid(quick: bool) -> Iterator[MetaDockStep]:
    for density in (1.0, 0.5):
        yield MetaDockStep(density)


GROUPS = {"maml": Group(run_maml, maml_grid), "metadock": Group(run_metadock, metadock_grid)}

if __name__ == "__main__":
    run_benchmark("meta_steps", __doc__.splitlines()[0], GROUPS, seconds=15.0, quick_seconds=2.0)
