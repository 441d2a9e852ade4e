"""Whole meta-steps, captured and eager, against a loop over the tasks and against vmap.

A meta-step is the meta-gradient and a step of Adam, at a rate of zero, so that every round does the
same work. All sides must give the same meta-gradient in float64 before a time is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metasparse_ext as ms
from benchmarks import implicit, meta_steps, metadock_peer, peers
from benchmarks.gpu.peers import Implicit, loss_of, parameters_of, vmap_head, vmap_maml
from benchmarks.gpu.timing import PRECISIONS, Clock, Job, precision
from benchmarks.harness import Row, verify
from metasparse_ext.algorithms import IMAML, MAML, ConvexIMAML, MetaLearner
from metasparse_ext.data import TaskBatch
from metasparse_ext.nn import Conv4

Gradients = Callable[[], list[Tensor]]

BOUND = 1e-7


@dataclass(frozen=True)
class MetaStep:
    """A learner on tasks of five classes, one image of each (MetaDOCK: five); strided Conv4."""

    learner: str
    tasks: int
    size: int
    channels: int
    steps: int
    width: int = 64


@dataclass(frozen=True)
class Sides:
    """Ours, and the meta-gradients of others, by name.

    ``checks`` are to equal ours where the others solve another problem, and are not timed.
    """

    learner: MetaLearner
    batch: TaskBatch
    others: dict[str, Gradients]
    checks: dict[str, Gradients] | None = None

    def meta_backward(self, batch: TaskBatch) -> object:
        """Ours; in the same iteration every time, which MetaDOCK's penalty depends on."""
        self.learner.iteration.fill_(1)
        return self.learner.meta_backward(batch)


def jobs(clock: Clock, *, quick: bool, tiny: bool = False) -> Iterator[Job]:
    """What is to be measured, four tasks first; ``tiny`` only exercises the code."""
    for case in tiny_cases() if tiny else cases(quick):
        yield partial(run, clock, case, PRECISIONS[:1] if tiny else PRECISIONS)


def run(clock: Clock, case: MetaStep, precisions: Sequence[str]) -> list[Row]:
    error = check(case, clock.device)
    rows = []
    for name in precisions:
        with precision(name):
            rows.append(run_case(clock, case, name, error))
    return rows


def cases(quick: bool) -> Iterator[MetaStep]:
    for tasks in (4,) if quick else (4, 32):
        yield MetaStep("maml", tasks, 28, 1, steps=5)
        yield MetaStep("imaml", tasks, 28, 1, steps=16)
        yield MetaStep("convex-imaml", tasks, 28, 1, steps=0)
        yield MetaStep("metadock", tasks, 32, 3, steps=16)


def tiny_cases() -> Iterator[MetaStep]:
    for learner in SIDES:
        yield MetaStep(learner, 2, 8, 1, steps=2, width=4)


def check(case: MetaStep, device: str) -> float:
    """The largest error of any side, all in float64."""
    sides = SIDES[case.learner](case, torch.float64, device)
    sides.learner.zero_grad()
    sides.meta_backward(sides.batch)
    ours = _flat([p.grad for p in sides.learner.parameters()])
    return max(
        verify(f"{case}: {name}", ours, _flat(other()), BOUND)
        for name, other in (sides.checks or sides.others).items()
    )


def run_case(clock: Clock, case: MetaStep, name: str, error: float) -> Row:
    sides = SIDES[case.learner](case, torch.float32, clock.device)
    step = _with_adam(sides)
    captured = ms.capture(step)
    variants = {
        "captured": lambda: captured(sides.batch),
        "eager": lambda: step(sides.batch),
        **{other: _peer_step(sides, run) for other, run in sides.others.items()},
    }
    for _ in range(3):
        captured(sides.batch)
    # The next call captures: it asks for the memory that replays use again and again.
    memory = {variant: clock.peak_bytes(call) for variant, call in variants.items()}
    timings = clock.interleave(variants, budget=1.0, most=30)
    more = {
        "eager": asdict(timings.pop("eager")),
        "not_captured_because": captured.reason,
        "peak_bytes": memory,
    }
    return Row(
        "meta_step",
        {**asdict(case), "precision": name},
        error,
        timings.pop("captured"),
        timings,
        more,
    )


def _with_adam(sides: Sides) -> Callable[[TaskBatch], object]:
    optimizer = _adam(sides.learner)

    def meta_step(batch: TaskBatch) -> object:
        optimizer.zero_grad()
        metrics = sides.meta_backward(batch)
        optimizer.step()
        return metrics

    return meta_step


def _peer_step(sides: Sides, gradients: Gradients) -> Callable[[], None]:
    parameters = [nn.Parameter(p.detach().clone()) for p in sides.learner.parameters()]
    optimizer = _adam(parameters)

    def step() -> None:
        for parameter, found in zip(parameters, gradients(), strict=True):
            parameter.grad = found.view_as(parameter)
        optimizer.step()

    return step


def _adam(owner: nn.Module | list[nn.Parameter]) -> torch.optim.Adam:
    parameters = list(owner.parameters()) if isinstance(owner, nn.Module) else owner
    rate = torch.zeros((), device=parameters[0].device)
    return torch.optim.Adam(parameters, lr=rate, capturable=True, fused=True)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


# ---- the learners ------------------------------------------------------------------------------


def _network(case: MetaStep) -> Conv4:
    torch.manual_seed(0)
    return Conv4(case.channels, case.size, case.width, ways=5)


def _batch(case: MetaStep, dtype: torch.dtype, device: str, shots: int, queries: int) -> TaskBatch:
    image = case.channels, case.size, case.size
    return meta_steps.random_tasks(case.tasks, shots, queries, image, dtype).to(device)


def _maml(case: MetaStep, dtype: torch.dtype, device: str) -> Sides:
    net, batch = _network(case), _batch(case, dtype, device, 1, 15)
    twin = peers.stock_twin(net).to(device, dtype)
    learner = MAML(net, inner_lr=0.05, inner_steps=case.steps).to(device, dtype)
    others = {
        "loop": lambda: peers.stock_maml(twin, batch, 0.05, case.steps),
        "vmap": lambda: vmap_maml(twin, batch, 0.05, case.steps),
    }
    return Sides(learner, batch, others)


def _imaml(case: MetaStep, dtype: torch.dtype, device: str) -> Sides:
    net, batch = _network(case), _batch(case, dtype, device, 1, 15)
    twin = peers.stock_twin(net).to(device, dtype)
    peer = Implicit(inner_lr=0.05, steps=case.steps, lam=2.0, cg_steps=5)
    learner = IMAML(
        net, inner_lr=peer.inner_lr, inner_steps=peer.steps, lam=peer.lam, cg_steps=peer.cg_steps
    ).to(device, dtype)
    theta = parameters_of(twin)
    others = {
        "loop": lambda: peer.loop(twin, batch),
        "vmap": lambda: peer.vmap(loss_of(twin), theta, batch),
    }
    return Sides(learner, batch, others)


def _convex_imaml(case: MetaStep, dtype: torch.dtype, device: str) -> Sides:
    net, batch = _network(case), _batch(case, dtype, device, 1, 15)
    twin = peers.stock_twin(net).to(device, dtype)
    learner = ConvexIMAML(net, lam=implicit.HEAD_LAM).to(device, dtype)
    target = learner.meta_backward(batch).support_loss
    learner.zero_grad()
    rate, steps = implicit.descent_to(twin, batch.support, target)
    newton = ConvexIMAML(copy.deepcopy(net), lam=implicit.HEAD_LAM, solver="newton")

    def by_newton() -> list[Tensor]:
        newton.zero_grad()
        newton.meta_backward(batch)
        return [p.grad for p in newton.parameters()]

    # Descent on the head stops at the support loss of the exact head, but elsewhere.
    others = {
        f"loop, {steps} steps": lambda: implicit.unrolled_step(twin, batch, rate, steps),
        f"vmap, {steps} steps": lambda: vmap_head(twin, batch, rate, steps),
    }
    return Sides(learner, batch, others, {"newton": by_newton})


def _metadock(case: MetaStep, dtype: torch.dtype, device: str) -> Sides:
    like = meta_steps.MetaDockStep(
        density=0.5,
        size=case.size,
        channels=case.channels,
        width=case.width,
        tasks=case.tasks,
        steps=case.steps,
    )
    learner = like.learner(dtype).to(device)
    batch = _batch(case, dtype, device, 5, 5)
    names = [name for name, _ in learner.named_parameters()]

    def loop() -> list[Tensor]:
        learner.iteration.fill_(1)
        found = metadock_peer.meta_gradient(learner, batch)
        return [found[name] for name in names]

    def loss(parameters, images, labels):
        return F.cross_entropy(metadock_peer.logits(parameters, images, frozen=False), labels)

    def penalised(parameters, images, labels):
        scores = {name: p for name, p in parameters.items() if name.endswith("scores")}
        return loss(parameters, images, labels) + metadock_peer.penalty(learner, scores)

    def mapped() -> list[Tensor]:
        learner.iteration.fill_(1)
        return peer.vmap(loss, parameters_of(learner), batch, penalised)

    peer = Implicit(learner.inner_lr, learner.inner_steps, learner.lam, learner.cg_steps)
    return Sides(learner, batch, {"loop": loop, "vmap": mapped})


SIDES: dict[str, Callable[[MetaStep, torch.dtype, str], Sides]] = {
    "maml": _maml,
    "imaml": _imaml,
    "convex-imaml": _convex_imaml,
    "metadock": _metadock,
}
