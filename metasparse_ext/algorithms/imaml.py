"""iMAML: meta-gradients by implicit differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    FLOATS,
    LARGEST,
    refuse,
    require_choice,
    require_count,
    require_number,
)
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.records import Metrics, Source
from metasparse_ext.algorithms.task_networks import AdaptedTasks
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.implicit import (
    CGStatus,
    Kind,
    damped,
    hessian_free,
    implicit_solve,
    linearize,
)
from metasparse_ext.implicit.linearize import Curvature

Mode = Literal["official", "paper"]
Inner = Literal["gradient", "hessian_free"]

# Adds what it knows of at phi (T, P) to a gradient (T, P), in place.
Penalty = Callable[[Tensor, Tensor], None]

# The operator of each mode.
_OPERATORS: dict[Mode, Kind] = {"official": "imaml_dev", "paper": "paper"}


class IMAML(MetaLearner):
    """MAML with an implicit meta-gradient, which needs the inner loop's end but not its path.

    The inner problem is phi* = argmin L_support(phi) + lambda/2 ||phi - theta||^2. With H the
    Hessian of L_support at phi*, the meta-gradient of a task solves A v = grad L_query(phi*) by
    conjugate gradients. The paper and its official code differ:

    ============  =====================================  ====================================
    mode          inner loop                             A
    ============  =====================================  ====================================
    ``paper``     n gradient steps on the regularized    (1 + d) I + H / lambda, d = 0
                  loss
    ``official``  n gradient steps on L_support alone,   (1 + d) I + H / (lambda + 10), d = 1
                  then one on lambda/2 ||phi - theta||^2
    ============  =====================================  ====================================

    In official mode the meta-gradient is close to half the first-order one. Numbers of the two
    modes do not compare. The official optimizer is Adam with eps = 1e-3. A task whose A turns
    out not to be positive definite keeps the last iterate before that; if there is none, it gets
    the meta-gradient of a zero Hessian.

    Args:
        model: A network from images to logits.
        inner_lr: Learning rate of the inner loop; a Hessian-free one has a line search instead.
        inner_steps: n.
        adapt_steps: Steps that :meth:`adapt` takes; n by default.
        mode: "official" or "paper".
        lam: lambda, above 0.
        adapt_lam: lambda in :meth:`adapt`; ``lam`` by default. The official evaluation uses 0.
        cg_steps: Iterations of conjugate gradients. With 0, and in official mode with 1 as in its
            code, the solve is left out, which gives the first-order meta-gradient.
        damping: d.
        inner: What a step of the inner loop is: "gradient", or "hessian_free", Newton's by a few
            conjugate gradients and a line search (:func:`~metasparse_ext.implicit.hessian_free`),
            as in the paper's best numbers. It minimizes the regularized loss, so it is of paper
            mode, and ``adapt_lam`` is above 0.
        inner_cg_steps: Conjugate gradients of such a step.
        curvature: What H is, in such a step too: "hessian", as in the sources, or "ggn", the
            generalized Gauss-Newton matrix. That is positive semi-definite, so A is definite
            always, where the Hessian of a network often makes it singular and the meta-gradient
            spike.

    Source: Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019,
        and its public code.
    """

    source = Source(
        paper="Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019",
        exact="both the paper's equations and its code's, which differ: mode=paper, mode=official; "
        "with a solve that meets no direction of negative curvature",
        reconstructed="a guard: a task that meets one keeps the iterate before it, or the "
        "first-order meta-gradient, where the official code divides by it and goes on; of the "
        "Hessian-free solver the paper states five conjugate gradients and a line search, no more",
    )
    dtypes = FLOATS

    mode: Mode
    inner: Inner = "gradient"
    curvature: Curvature

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 0.1,
        inner_steps: int = 16,
        adapt_steps: int | None = None,
        mode: Mode = "official",
        lam: float = 2.0,
        adapt_lam: float | None = None,
        cg_steps: int = 5,
        damping: float | None = None,
        inner: Inner = "gradient",
        inner_cg_steps: int = 5,
        curvature: Curvature = "hessian",
    ) -> None:
        super().__init__(model, inner_lr=inner_lr, inner_steps=inner_steps, adapt_steps=adapt_steps)
        require_choice(self.name, "mode", mode, Mode)
        require_number(self.name, "lam", lam, above=0)
        require_count(self.name, "cg_steps", cg_steps, most=LARGEST)
        self.mode, self.lam, self.cg_steps = mode, lam, cg_steps
        if adapt_lam is not None:
            require_number(self.name, "adapt_lam", adapt_lam, least=0)
        self.adapt_lam = adapt_lam
        self.damping = float(mode == "official") if damping is None else damping
        require_number(self.name, "damping", self.damping, least=0)
        require_choice(self.name, "curvature", curvature, Curvature)
        require_choice(self.name, "inner", inner, Inner)
        require_count(self.name, "inner_cg_steps", inner_cg_steps, least=1, most=LARGEST)
        if inner == "hessian_free":
            if mode != "paper":
                wanted = "'gradient' in mode 'official', whose inner loop has no other"
                refuse(self.name, "inner", wanted, repr(inner))
            if adapt_lam is not None:
                require_number(self.name, "adapt_lam", adapt_lam, above=0)
        self.inner, self.inner_cg_steps = inner, inner_cg_steps
        self.curvature = curvature

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}, lam={self.lam:g}"

    def adapt(self, support: Samples) -> AdaptedTasks:
        lam = self._proximal() if self.adapt_lam is None else self.adapt_lam
        phi = self._descend(support, self.adapt_steps, lam, [], self._penalty())
        return self.adapted(phi)

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        trace: list[Tensor] = []
        penalty = self._penalty()
        phi = self._descend(batch.support, self.inner_steps, self._proximal(), trace, penalty)
        loss, gradient, logits = self.gradient(phi, batch.query)
        trace.append(loss)
        penalty(gradient, phi)
        gradient, solved = self._solve(gradient, phi, batch.support)
        return self.finish(gradient, phi, trace, batch.query, logits, solved)

    def _proximal(self) -> float | Tensor:
        """lambda: a number, or one for each parameter (P,)."""
        return self.lam

    def _penalty(self) -> Penalty:
        """What is added to the gradients of the cross-entropy in this meta-step."""
        return lambda gradient, phi: None

    def _descend(
        self,
        support: Samples,
        steps: int,
        lam: float | Tensor,
        trace: list[Tensor],
        penalty: Penalty,
    ) -> Tensor:
        """Solves the inner problem approximately; appends each step's losses to the trace."""
        theta = phi = self.start(len(support.labels))
        if self.inner == "hessian_free":
            inner_loss, model = self._inner_loss(support)
            found = hessian_free(
                inner_loss,
                theta,
                lam=lam,
                steps=steps,
                iterations=self.inner_cg_steps,
                model=model,
                curvature=self.curvature,
            )
            trace.extend(found.losses)
            return found.params
        pull = self.inner_lr * lam
        for _ in range(steps):
            loss, gradient, _ = self.gradient(phi, support)
            trace.append(loss)
            penalty(gradient, phi)
            phi = torch.lerp(phi, theta, pull) if self.mode == "paper" else phi
            phi = torch.sub(phi, gradient, alpha=self.inner_lr)
        return torch.lerp(phi, theta, pull) if self.mode == "official" else phi

    def _inner_loss(
        self, support: Samples
    ) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Any] | None]:
        """L_support of parameters; for its Gauss-Newton matrix of outputs, and what makes them."""
        if self.curvature == "ggn":
            return (
                lambda outputs: self.task_losses(outputs, support.labels),
                lambda point: self.logits(point, support.images),
            )
        return lambda point: self.losses(point, support), None

    def _solve(
        self, gradient: Tensor, phi: Tensor, support: Samples
    ) -> tuple[Tensor, Tensor | None]:
        """Each task's meta-gradient (T, P) from the query gradient (T, P) at phi.

        And (T,) whether its solve met finite values only, or None where there was no solve: a
        solve that is broken off has a finite iterate, possibly zero, which is no meta-gradient.
        """
        if self.cg_steps <= (1 if self.mode == "official" else 0):
            return gradient, None
        loss, model = self._inner_loss(support)
        hvp = linearize(loss, phi, model=model, curvature=self.curvature).hvp
        kind = _OPERATORS[self.mode]
        operator = damped(hvp, kind, lam=self._proximal(), damping=self.damping)
        implicit, solve = implicit_solve(operator, gradient, iterations=self.cg_steps)
        return implicit, solve.status != CGStatus.NOT_FINITE
