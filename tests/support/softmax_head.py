"""Random fits of the softmax head against the conditions of its optimum, in float64."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from metasparse_ext.implicit import HeadStatus, softmax_head
from metasparse_ext.reference import softmax_head as reference
from support.comparison import changed, first_difference
from support.machine import INSTRUCTION_SETS, THREADS, conditions
from support.operands import LAYOUTS, place

BOUND = {"float32": 2e-6, "float64": 1e-11}


class Head(NamedTuple):
    """One fit. ``layouts`` are of the features, the weight, and lambda; ``shared``: all tasks start
    from one weight."""

    tasks: int = 1
    samples: int = 1
    features: int = 1
    classes: int = 1
    lam: float = 1.0
    spread: float = 1.0
    shared: bool = False
    layouts: tuple[str, str, str] = ("contiguous",) * 3
    dtype: str = "float64"
    threads: int = 1
    isa: str = INSTRUCTION_SETS[-1]
    data: int = 0

    def check(self) -> str | None:
        """What is wrong with the fit or its implicit gradient, or None."""
        given, labels = self.problem()
        before = {name: t.clone() for name, t in given.items()}
        leaves = {name: t.detach().requires_grad_() for name, t in given.items()}
        with conditions(self.threads):
            fit = softmax_head(leaves["x"], labels, leaves["weight"], lam=leaves["lam"])
            grad = torch.ones_like(fit.weight)
            grads = torch.autograd.grad(fit.weight, list(leaves.values()), grad)
        exact = {name: t.double() for name, t in given.items()}
        exact["weight"] = exact["weight"].expand_as(fit.weight)
        # Rounding may keep a wide problem from its tolerance: the slope below says how far it is.
        if HeadStatus.NOT_FINITE in fit.report.status.tolist():
            return f"status {fit.report.status.tolist()}, residual {fit.report.residual.tolist()}"
        bound, dtype = BOUND[self.dtype], getattr(torch, self.dtype)
        slope, size = _slope(exact, labels, fit.weight.detach().double())
        expected = list(
            reference.softmax_head_grad(
                grad.double(),
                fit.weight.detach().double(),
                exact["x"],
                labels,
                exact["weight"],
                exact["lam"],
            )
        )
        if self.shared:
            expected[1] = expected[1].sum(0)
        # Small values of lambda make the gradient of the fit large.
        scales = [e.abs().amax() + self._amplification(exact) for e in expected]
        return (
            changed(before, given)
            or first_difference([slope], [torch.zeros_like(slope)], [size], bound, torch.float64)
            or first_difference([grads[0], grads[1], grads[2]], expected, scales, 10 * bound, dtype)
        )

    def _amplification(self, exact: dict[str, Tensor]) -> Tensor:
        norm = exact["x"].square().sum(-1).max()
        return (1 + norm) * (1 + norm / self.lam)

    def problem(self) -> tuple[dict[str, Tensor], Tensor]:
        """The arguments by name, and the labels."""
        generator = torch.Generator().manual_seed(self.data)
        dtype = getattr(torch, self.dtype)

        def normal(shape) -> Tensor:
            return self.spread * torch.randn(tuple(shape), generator=generator, dtype=dtype)

        def positive(shape) -> Tensor:
            return self.lam * (1 + torch.rand(tuple(shape), generator=generator, dtype=dtype))

        weight = (self.classes, self.features)
        weight = weight if self.shared else (self.tasks, *weight)
        sizes = {
            "x": ((self.tasks, self.samples, self.features), normal),
            "weight": (weight, normal),
            "lam": ((self.tasks,), positive),
        }
        given = {
            name: place(shape, layout, fill)
            for (name, (shape, fill)), layout in zip(sizes.items(), self.layouts, strict=True)
        }
        given["lam"] = given["lam"].abs().clone() if (given["lam"] < 0).any() else given["lam"]
        labels = torch.randint(
            self.classes, (self.tasks, self.samples), generator=generator, dtype=torch.int64
        )
        return given, labels


def _slope(exact: dict[str, Tensor], labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of each task's objective at the fit, and how large its terms are."""
    point = weight.clone().requires_grad_()
    scores = exact["x"] @ point.mT
    loss = F.cross_entropy(scores.mT, labels, reduction="none").mean(-1)
    pull = exact["lam"] / 2 * (point - exact["weight"]).square().sum((1, 2))
    slope = torch.autograd.grad((loss + pull).sum(), point)[0]
    # Weights are rounded: that moves the scores, and through them the gradient.
    wide = exact["x"].abs().amax()
    size = wide * (1 + weight.abs().amax() * exact["x"].abs().sum(-1).amax())
    return slope, size + exact["lam"].max() * weight.abs().amax()


@st.composite
def draws(draw) -> Head:
    """Fits with more samples than features and fewer, of few classes and many."""
    return Head(
        tasks=draw(st.integers(1, 4)),
        samples=draw(st.integers(1, 30)),
        features=draw(st.integers(1, 70)),
        classes=draw(st.one_of(st.integers(1, 5), st.integers(1, 20))),
        lam=draw(st.sampled_from((1.0, 0.01, 0.1, 10.0))),
        spread=draw(st.sampled_from((1.0, 0.01, 3.0))),
        shared=draw(st.booleans()),
        layouts=tuple(draw(st.sampled_from(tuple(LAYOUTS))) for _ in range(3)),
        dtype=draw(st.sampled_from(tuple(BOUND))),
        threads=draw(st.sampled_from(THREADS)),
        isa=draw(st.sampled_from(INSTRUCTION_SETS)),
        data=draw(st.integers(0, 2**20)),
    )
