"""The implicit layer against stock PyTorch: ``python -m benchmarks.implicit [--quick]``.

Three questions. What does one iMAML meta-gradient cost against the same mathematics written the
usual way: task by task, the graph rebuilt for every Hessian product? What does the exact head cost
against Newton's method with autograd's products? And what a Convex iMAML meta-step, against a loop
that unrolls gradient descent on the head until the support loss is as low?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.command import Group, run_benchmark
from benchmarks.harness import Row, WrongResult, interleave, verify
from metasparse_ext.algorithms import ConvexIMAML
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.implicit import Layout, implicit_gradient, softmax_head, task_losses
from metasparse_ext.nn import Conv4


@dataclass(frozen=True)
class Network:
    """Conv4 on random tasks of five classes."""

    backbone: str
    size: int
    channels: int
    width: int
    shots: int
    queries: int
    tasks: int = 4

    def build(self, dtype: torch.dtype) -> Conv4:
        torch.manual_seed(0)
        strided = self.backbone == "strided"
        return Conv4(self.channels, self.size, self.width, ways=5, strided=strided).to(dtype)

    def batch(self, dtype: torch.dtype) -> TaskBatch:
        torch.manual_seed(1)

        def samples(each: int) -> Samples:
            shape = self.tasks, 5 * each, self.channels, self.size, self.size
            labels = torch.arange(5).repeat_interleave(each).expand(self.tasks, -1)
            return Samples(torch.rand(shape).to(dtype), labels)

        return TaskBatch(samples(self.shots), samples(self.queries))


# ---- one iMAML meta-gradient -------------------------------------------------------------------

# A large lambda: on an untrained network the matrix is indefinite at small ones, and our guard then
# stops a task that the usual code lets run on.
CG_STEPS, LAM = 5, 1000.0


def run_meta_gradient(case: Network, budget: float) -> Row:
    # In float32 the order of summation alone moves five CG steps by 1e-3: compared in float64.
    ours, usual = meta_gradient_sides(case, torch.float64)
    error = verify(f"meta-gradient {case}", ours(), usual(), 1e-8)
    ours, usual = meta_gradient_sides(case, torch.float32)
    timings = interleave({"ours": ours, "per task, rebuilt": usual}, budget=budget, most=30)
    return Row("meta-gradient", asdict(case), error, timings.pop("ours"), timings)


def meta_gradient_sides(case: Network, dtype: torch.dtype):
    net, batch = case.build(dtype), case.batch(dtype)
    twin = peers.stock_twin(net).to(dtype)
    layout = Layout.of(net)
    start = layout.flatten(dict(net.named_parameters())).detach()
    phi = start + 0.01 * torch.randn(case.tasks, layout.numel).to(dtype)
    support, query = (task_losses(net, layout, s.images, s.labels, task_aware=True) for s in batch)

    def ours() -> Tensor:
        return implicit_gradient(
            support, query, phi, lam=LAM, kind="imaml_dev", iterations=CG_STEPS
        ).gradient

    names = [name for name, _ in twin.named_parameters()]

    def usual() -> Tensor:
        rows = []
        for t in range(case.tasks):
            parts = zip(names, layout.unflatten(phi[t]).values(), strict=True)
            parameters = {name: part.clone().requires_grad_() for name, part in parts}
            own = [Samples(s.images[t], s.labels[t]) for s in batch]
            rows.append(usual_meta_gradient(twin, parameters, *own))
        return torch.stack(rows)

    return ours, usual


def usual_meta_gradient(
    net: torch.nn.Module, parameters: dict[str, Tensor], support: Samples, query: Samples
) -> Tensor:
    """One task: conjugate gradients on 2 I + H / (lambda + 10), each product from scratch."""
    leaves = list(parameters.values())

    def gradient(samples: Samples, *, create_graph: bool) -> Tensor:
        logits = torch.func.functional_call(net, parameters, (samples.images,))
        loss = F.cross_entropy(logits, samples.labels)
        grads = torch.autograd.grad(loss, leaves, create_graph=create_graph)
        return torch.cat([g.flatten() for g in grads])

    def product(v: Tensor) -> Tensor:
        slope = gradient(support, create_graph=True)
        hv = torch.autograd.grad(slope @ v, leaves)
        return 2 * v + torch.cat([h.flatten() for h in hv]) / (LAM + 10)

    b = gradient(query, create_graph=False)
    return peers.conjugate_gradients(product, b, CG_STEPS)


# ---- the exact head ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    samples: int
    features: int = 1600
    classes: int = 5
    tasks: int = 4
    lam: float = 0.1


def run_head(case: Head, budget: float) -> Row:
    x, y, w0 = head_data(case, torch.float64)
    exact = softmax_head(x, y, w0, lam=case.lam).weight
    newton = torch.stack(
        [autograd_newton(*xy, w0, case.lam, 1e-10) for xy in zip(x, y, strict=True)]
    )
    error = verify(f"head {case}", exact, newton, 1e-7)
    x, w0 = x.float(), w0.float()
    verify(f"head {case}, float32", softmax_head(x, y, w0, lam=case.lam).weight, exact, 1e-5)
    variants = {
        "ours": lambda: softmax_head(x, y, w0, lam=case.lam),
        # Float32 lets its residual fall no further.
        "autograd Newton-CG": lambda: [
            autograd_newton(*xy, w0, case.lam, 1e-4) for xy in zip(x, y, strict=True)
        ],
    }
    timings = interleave(variants, budget=budget)
    return Row("head", asdict(case), error, timings.pop("ours"), timings)


def head_data(case: Head, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features as behind a ReLU, in clusters that overlap."""
    torch.manual_seed(0)
    y = torch.arange(case.samples) % case.classes
    means = torch.randn(case.tasks, case.classes, case.features) / 2
    x = (means[:, y] + torch.randn(case.tasks, case.samples, case.features)).relu()
    w0 = torch.randn(case.classes, case.features) / 40
    return x.to(dtype), y.expand(case.tasks, -1), w0.to(dtype)


def autograd_newton(
    x: Tensor, y: Tensor, center: Tensor, lam: float, tolerance: float, limit: int = 30
) -> Tensor:
    """One task by Newton's method; the products by autograd, on a graph kept for each step."""
    w = center.clone().requires_grad_()

    def objective(w: Tensor) -> Tensor:
        return F.cross_entropy(x @ w.T, y) + lam / 2 * (w - center).square().sum()

    first = None
    for _ in range(limit):
        loss = objective(w)
        (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
        norm = float(gradient.detach().norm())
        first = norm if first is None else first
        if norm <= tolerance * first:
            return w.detach()
        r = -gradient.detach()
        step, p, rr = torch.zeros_like(r), r.clone(), r.square().sum()
        goal = min(0.1, norm / first) ** 2 * rr
        while rr > goal:
            (q,) = torch.autograd.grad(gradient, w, p, retain_graph=True)
            alpha = rr / (p * q).sum()
            step, r = step + alpha * p, r - alpha * q
            new = r.square().sum()
            p, rr = r + new / rr * p, new
        length = 1.0
        with torch.no_grad():
            while objective(w + length * step) > loss and length > 1e-6:
                length /= 2
            w += length * step
    raise WrongResult(f"autograd Newton-CG: {norm / first:.1e} after {limit} iterations")


# ---- a Convex iMAML meta-step ------------------------------------------------------------------

HEAD_LAM = 0.01


def run_convex_step(case: Network, budget: float) -> Row:
    double, single = (
        [ConvexIMAML(case.build(dtype), lam=HEAD_LAM), case.batch(dtype)]
        for dtype in (torch.float64, torch.float32)
    )
    check = ConvexIMAML(double[0].model, lam=HEAD_LAM, solver="newton")
    gradients = [meta_gradient(*double), meta_gradient(check, double[1])]
    error = verify(f"Convex iMAML {case}", *gradients, 1e-6)

    learner, batch = single
    target = learner.meta_backward(batch).support_loss
    twin = peers.stock_twin(learner.model)
    rate, steps = descent_to(twin, batch.support, target)
    peer = "learn2learn" if peers.HAS_LEARN2LEARN else "torch loop"
    name = f"{peer}, {steps} steps on the head"
    variants = {
        "ours": lambda: meta_gradient(learner, batch),
        name: lambda: unrolled_step(twin, batch, rate, steps),
    }
    timings = interleave(variants, budget=budget, most=30)
    return Row("convex-imaml", asdict(case), error, timings.pop("ours"), timings)


def meta_gradient(learner: ConvexIMAML, batch: TaskBatch) -> Tensor:
    learner.zero_grad(set_to_none=True)
    learner.meta_backward(batch)
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def descent_to(net: torch.nn.Sequential, support: Samples, target: Tensor) -> tuple[float, int]:
    """The rate 1/L and how many steps bring every task's support loss down to the target."""
    with torch.no_grad():
        features = torch.stack([net[:-1](images) for images in support.images])
        norms = torch.linalg.matrix_norm(features, ord=2)
        rate = float(2 * features.shape[1] / norms.square().max())
        weight = net[-1].weight.expand(len(features), -1, -1)
        bias = net[-1].bias.expand(len(features), -1)
        hot = F.one_hot(support.labels, weight.shape[1]).float()
        for step in range(10_000):
            logits = features @ weight.mT + bias[:, None]
            loss = F.cross_entropy(logits.mT, support.labels, reduction="none").mean(-1)
            if bool((loss <= target).all()):
                return rate, step
            slopes = (logits.softmax(-1) - hot) * (rate / features.shape[1])
            weight, bias = weight - slopes.mT @ features, bias - slopes.sum(1)
    raise WrongResult("gradient descent on the head did not reach the exact head's support loss")


def unrolled_step(
    net: torch.nn.Sequential, batch: TaskBatch, rate: float, steps: int
) -> list[Tensor]:
    """ANIL's loop over tasks, every step of the head's descent kept for the backward pass."""
    adapt = _learn2learn_head if peers.HAS_LEARN2LEARN else _autograd_head
    net.zero_grad()
    tasks = len(batch.support.images)
    for t in range(tasks):
        features = net[:-1](batch.support.images[t])
        head = adapt(net[-1], features, batch.support.labels[t], rate, steps)
        logits = head(net[:-1](batch.query.images[t]))
        (F.cross_entropy(logits, batch.query.labels[t]) / tasks).backward()
    return [p.grad for p in net.parameters()]


def _learn2learn_head(
    layer: torch.nn.Linear, features: Tensor, labels: Tensor, rate: float, steps: int
) -> Callable[[Tensor], Tensor]:
    head = peers.learn2learn().algorithms.MAML(layer, lr=rate).clone()
    for _ in range(steps):
        head.adapt(F.cross_entropy(head(features), labels))
    return head


def _autograd_head(
    layer: torch.nn.Linear, features: Tensor, labels: Tensor, rate: float, steps: int
) -> Callable[[Tensor], Tensor]:
    """The same with torch.autograd alone, for where learn2learn is not installed."""
    weight, bias = layer.weight, layer.bias
    for _ in range(steps):
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        slopes = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        weight, bias = weight - rate * slopes[0], bias - rate * slopes[1]
    return lambda images: F.linear(images, weight, bias)


# ---- the command -------------------------------------------------------------------------------


def gradient_grid(quick: bool) -> Iterator[Network]:
    yield Network("strided", 28, 1, 64, shots=1, queries=15)
    if not quick:
        yield Network("strided", 84, 3, 64, shots=1, queries=15)
        yield Network("pooled", 84, 3, 64, shots=1, queries=15)


def head_grid(quick: bool) -> Iterator[Head]:
    for samples in (25, 125):
        yield Head(samples)


def step_grid(quick: bool) -> Iterator[Network]:
    yield Network("strided", 28, 1, 64, shots=1, queries=15)
    if not quick:
        yield Network("strided", 28, 1, 64, shots=5, queries=15)
        yield Network("pooled", 84, 3, 32, shots=1, queries=15)


GROUPS = {
    "meta_gradient": Group(run_meta_gradient, gradient_grid),
    "head": Group(run_head, head_grid),
    "convex_step": Group(run_convex_step, step_grid),
}

if __name__ == "__main__":
    run_benchmark("implicit", __doc__.splitlines()[0], GROUPS, seconds=15.0, quick_seconds=1.0)
