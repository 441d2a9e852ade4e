"""MAML and its first-order form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import LARGEST, require_choice, require_count, require_flag
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.draws import remembered
from metasparse_ext.algorithms.records import Metrics, Source
from metasparse_ext.algorithms.task_networks import AdaptedTasks
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.implicit import Layout, Linearization, linearize

Rates = Literal["fixed", "layer", "parameter"]
Curved = Linearization | Callable[[], Linearization]

# Each step but the last keeps at least this fraction of its first weight.
_FLOOR = 0.03


class StepOptions(TypedDict, total=False):
    """The options of :class:`MAML` but its learning rate, for learners that hand them on to it."""

    inner_steps: int
    adapt_steps: int | None
    first_order: bool
    recompute: bool
    rates: Rates
    multi_step: int
    first_order_until: int


class MAMLOptions(StepOptions, total=False):
    """All options of :class:`MAML`, for learners that hand them on to it."""

    inner_lr: float


@dataclass
class _RateGraph:
    """Rates a_k that depend on parameters: with a graph to ``point``, phi_k as they saw it.

    ``gradient`` is that of the support loss there.
    """

    rates: Tensor
    point: Tensor
    gradient: Tensor


@dataclass
class _Step:
    """What backpropagation through one inner step needs; None where it needs nothing.

    Attributes:
        rates: a_k.
        curvature: The linearization at phi_k, or what makes it; first order: None.
        graph: The graph of the rates.
        query: This step's part of a multi-step loss: its gradient at phi_k.
    """

    rates: float | Tensor
    curvature: Curved | None = None
    graph: _RateGraph | None = None
    query: Tensor | None = None


class MAML(MetaLearner):
    """Model-agnostic meta-learning: an initialization from which a few gradient steps suffice.

    Inner loop: phi_0 = theta, phi_{k+1} = phi_k - a grad L_support(phi_k). With H_k the Hessian of
    L_support at phi_k, the meta-gradient of a task is

        (I - a H_0) (I - a H_1) ... (I - a H_{n-1}) grad L_query(phi_n),

    applied from the right, one Hessian-vector product a step, so the graph of a step is freed as
    soon as it was used. The first-order form leaves out the Hessians.

    With learned rates a is a vector: H_k a v takes the place of a H_k v, and the meta-gradient of
    a_k is -grad L_support(phi_k) * v_{k+1}, v being the gradient that is propagated back. A
    learner with rates of its own overrides :meth:`rates`.

    Args:
        model: A network from images to logits.
        inner_lr: a, or what learned rates start from.
        inner_steps: n.
        adapt_steps: Steps that :meth:`adapt` takes; n by default.
        first_order: Leave out the Hessians (FOMAML).
        recompute: Keep only the points phi_k and build each step's graph again when it is needed:
            the memory of one step whatever n is, for one more gradient a step. The result is the
            same, dropout included, but for dropout in a captured meta-step.
        rates: "fixed"; "parameter": one learned rate a parameter (Meta-SGD); "layer": one a
            parameter tensor and step (LSLR of MAML++).
        multi_step: For so many iterations the query loss is a weighted sum of those after every
            step (:func:`~metasparse_ext.algorithms.maml.step_weights`), as in MAML++.
        first_order_until: First order for so many iterations, as in MAML++. This option and the
            last read ``iteration`` on the host: such a meta-step is not captured in a CUDA graph.

    Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
        Networks", ICML 2017.
    """

    source = Source(
        paper="Finn, Abbeel, Levine, ICML 2017",
        exact="the meta-gradient through all inner steps; Meta-SGD's and LSLR's rates, the "
        "multi-step loss and the first-order warm-up of MAML++ as options",
        reconstructed="the weights of the multi-step loss fall by the iteration, in MAML++'s code "
        "by the epoch",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        adapt_steps: int | None = None,
        first_order: bool = False,
        recompute: bool = False,
        rates: Rates = "fixed",
        multi_step: int = 0,
        first_order_until: int = 0,
    ) -> None:
        super().__init__(model, inner_lr=inner_lr, inner_steps=inner_steps, adapt_steps=adapt_steps)
        require_choice(self.name, "rates", rates, Rates)
        require_count(self.name, "multi_step", multi_step, most=LARGEST)
        require_count(self.name, "first_order_until", first_order_until, most=LARGEST)
        require_flag(self.name, "first_order", first_order)
        require_flag(self.name, "recompute", recompute)
        self.first_order, self.recompute = first_order, recompute
        self.multi_step, self.first_order_until = multi_step, first_order_until
        self.learned_rates: LearnedRates | None = None
        if rates != "fixed":
            self._learn_rates(rates, self.start(1).new_tensor(inner_lr))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, first_order={self.first_order}"

    def rates(self, step: int, phi: Tensor, gradient: Tensor, support: Samples) -> float | Tensor:
        """The learning rates of an inner step: a number, (P,), (T, P) or (T, 1).

        Differentiable in phi (T, P) and in the learner's own parameters, if they depend on them.
        ``gradient`` (T, P), that of the loss on ``support``, is a constant.
        """
        return self.inner_lr if self.learned_rates is None else self.learned_rates(step)

    @torch.no_grad()
    def adapt(self, support: Samples) -> AdaptedTasks:
        phi = self.theta(support)
        for k in range(self.adapt_steps):
            gradient = self.gradient(phi, support)[1]
            phi = _moved(phi, gradient, self.rates(k, phi, gradient, support))
        return self.adapted(phi)

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        support, query = batch.support, batch.query
        first_order, weights = self._phase()
        phi, path, trace = self.theta(support), [], []
        for k in range(self.inner_steps):
            loss, gradient, curvature = self._step(phi, support, first_order)
            trace.append(loss)
            step = self._rated(k, phi, gradient, support)
            step.curvature = curvature
            if k and weights:
                step.query = weights[k - 1] * self.gradient(phi, query)[1]
            path.append(step)
            phi = _moved(phi, gradient, step.rates)
        loss, gradient, logits = self.gradient(phi, query)
        trace.append(loss)
        gradient = weights[-1] * gradient if weights else gradient
        gradient, own = self._backpropagate(path, gradient)
        mean = self.meta_gradient(gradient, own, support)
        return self.finish(mean, phi, trace, query, logits)

    def _lay_out_anew(self, layout: Layout) -> None:
        if self.learned_rates is not None:
            self._refuse_new_layout("learned rates", layout)

    def _learn_rates(self, kind: Rates, initial: Tensor) -> None:
        self.learned_rates = LearnedRates(
            kind, self.layout, initial=initial, steps=self.inner_steps
        )

    def theta(self, support: Samples) -> Tensor:
        """(T, P): where the tasks start."""
        return self.start(len(support.labels))

    def meta_gradient(
        self, gradient: Tensor, own: dict[str, Tensor], support: Samples
    ) -> dict[str, Tensor]:
        """The meta-gradient by parameter.

        Args:
            gradient: (T, P) that of every task's start.
            own: The sum over the tasks, of parameters that the rates depend on.
            support: The support sets of the tasks.
        """
        mean = {name: total / len(gradient) for name, total in own.items()}
        return mean | self.by_parameter(gradient)

    def age(self) -> int:
        """The iterations that ``multi_step`` and ``first_order_until`` count."""
        return int(self.iteration)

    def _phase(self) -> tuple[bool, list[float]]:
        """Whether this iteration is of first order, and its multi-step weights, if it has any."""
        if not (self.multi_step or self.first_order_until):
            return self.first_order, []
        done = self.age()
        first_order = self.first_order or done < self.first_order_until
        if self.inner_steps == 0 or done >= self.multi_step:
            return first_order, []
        return first_order, step_weights(self.inner_steps, done / self.multi_step)

    def _step(
        self, phi: Tensor, support: Samples, first_order: bool
    ) -> tuple[Tensor, Tensor, Curved | None]:
        """Losses and gradients at phi, and what backpropagation needs for the curvature there."""
        if not (first_order or self.recompute):
            step = self._linearize(phi, support)
            return step.loss, step.gradient, step
        drawn = remembered(phi)
        loss, gradient, _ = self.gradient(phi, support)

        def again() -> Linearization:
            with drawn():
                return self._linearize(phi, support)

        return loss, gradient, None if first_order else again

    def _rated(self, k: int, phi: Tensor, gradient: Tensor, support: Samples) -> _Step:
        """The step's rates, with their graph where they depend on parameters."""
        with torch.enable_grad():
            point = phi.detach().requires_grad_()
            rates = self.rates(k, point, gradient, support)
        if isinstance(rates, Tensor) and rates.requires_grad:
            return _Step(rates, graph=_RateGraph(rates, point, gradient))
        return _Step(rates)

    def _backpropagate(
        self, path: list[_Step], gradient: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient in phi_0 from that in phi_n, and the sum over the tasks for own parameters.

        Empties the path to free graphs.
        """
        own: dict[str, Tensor] = {}
        while path:
            step, arriving = path.pop(), gradient
            if step.curvature is not None:
                gradient = self._through_curvature(step.rates, step.curvature, arriving)
            if step.graph is not None:
                gradient = self._through_rates(step.graph, arriving, own, gradient)
            if step.query is not None:
                gradient = gradient + step.query
        return gradient, own

    def _through_curvature(
        self, rates: float | Tensor, curvature: Curved, gradient: Tensor
    ) -> Tensor:
        """(I - H_k a) applied to (T, P)."""
        if not isinstance(curvature, Linearization):
            curvature = curvature()
        if isinstance(rates, Tensor):
            return gradient - curvature.hvp(rates.detach() * gradient)
        return torch.sub(gradient, curvature.hvp(gradient), alpha=rates)

    def _through_rates(
        self, graph: _RateGraph, gradient: Tensor, own: dict[str, Tensor], onward: Tensor
    ) -> Tensor:
        """Backpropagates through a step's rates: adds to ``own`` by name, and to ``onward``."""
        sources = {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith("model.")
        }
        to_phi, *parts = torch.autograd.grad(
            graph.rates,
            [graph.point, *sources.values()],
            -(graph.gradient * gradient).sum_to_size(graph.rates.shape),
            allow_unused=True,
        )
        for name, part in zip(sources, parts, strict=True):
            if part is not None:
                own[name] = own[name] + part if name in own else part
        return onward if to_phi is None else onward + to_phi

    def _linearize(self, phi: Tensor, support: Samples) -> Linearization:
        return linearize(lambda point: self.losses(point, support), phi)


class FOMAML(MAML):
    """First-order MAML: :class:`MAML` with ``first_order=True``."""

    source = Source(
        paper="Finn, Abbeel, Levine, ICML 2017", exact="the meta-gradient without Hessians"
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        adapt_steps: int | None = None,
        rates: Rates = "fixed",
        multi_step: int = 0,
    ) -> None:
        super().__init__(
            model,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            adapt_steps=adapt_steps,
            first_order=True,
            rates=rates,
            multi_step=multi_step,
        )


def _moved(phi: Tensor, gradient: Tensor, rates: float | Tensor) -> Tensor:
    """phi - a * gradient, without a graph."""
    if isinstance(rates, Tensor):
        return torch.addcmul(phi.detach(), rates.detach(), gradient, value=-1)
    return torch.sub(phi, gradient, alpha=rates)


class LearnedRates(nn.Module):
    """One rate for each parameter, or one for each parameter tensor and step.

    Args:
        kind: "parameter" (Meta-SGD: Li et al., 2017), or "layer" (LSLR of MAML++: Antoniou et al.,
            ICLR 2019), whose steps after the last share its rates.
        layout: Of the P adapted parameters.
        initial: () the rate that all start from; or (N,) for N sets of rates, each from its own.
        steps: Inner steps of training.
    """

    def __init__(self, kind: Rates, layout: Layout, *, initial: Tensor, steps: int) -> None:
        super().__init__()
        shape = (layout.numel,) if kind == "parameter" else (max(steps, 1), len(layout.names))
        self.kind: Rates = kind
        self.sizes = layout.sizes
        values = initial.view(*initial.shape, *[1] * len(shape)).expand(*initial.shape, *shape)
        self.values = nn.Parameter(values.clone())

    def forward(self, step: int) -> Tensor:
        """(P,) or (N, P): the rates of an inner step."""
        if self.kind == "parameter":
            return self.values
        return spread(self.values[..., min(step, self.values.shape[-2] - 1), :], self.sizes)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


def spread(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """(..., L) to (..., P): one number a parameter tensor, repeated for each of its entries."""
    parts = values.unsqueeze(-1).unbind(-2)
    return torch.cat(
        [part.expand(*part.shape[:-1], n) for part, n in zip(parts, sizes, strict=True)], -1
    )


def step_weights(steps: int, progress: float) -> list[float]:
    """Weights of the query losses after each of n inner steps; they add up to 1.

    All are 1 / n at first. Until ``progress`` is 1 those of all steps but the last fall linearly
    towards 0, not below 0.03 / n, and the last one takes what they lose.

    Source: Antoniou, Edwards, Storkey, "How to Train Your MAML", ICLR 2019, and its public code,
    which counts progress in epochs.
    """
    early = max(1 - progress, _FLOOR) / steps
    return [early] * (steps - 1) + [1 - (steps - 1) * early]
