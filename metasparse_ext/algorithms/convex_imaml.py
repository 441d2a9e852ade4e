"""Convex iMAML: the last layer fitted exactly, and differentiated implicitly."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from metasparse_ext._arguments import FLOATS, require_choice, require_number, require_size
from metasparse_ext.algorithms.head_learner import HeadLearner, head_logits
from metasparse_ext.algorithms.records import Source
from metasparse_ext.implicit import SOLVERS, softmax_head

SolverName = Literal["exact", "newton", "lbfgs", "gd"]


class ConvexIMAML(HeadLearner):
    """iMAML whose inner problem is convex, so that it has one solution, which is found exactly.

    w* = argmin_w L_support(w; psi) + lambda/2 ||w - w_0||^2, with w the head and psi the backbone.
    With H = d2 L_support/dw2 at w* and s = (H + lambda I)^-1 dL_query/dw, the meta-gradient is

        lambda s                                           in w_0,
        dL_query/dpsi - (d2 L_support / dpsi dw) s         in psi.

    The second term in psi, the cross term, is as large as the first: leaving it out is no
    approximation. See :func:`metasparse_ext.implicit.softmax_head`, which supplies it.

    Args:
        model: A network whose output is the output of its head.
        head: Name of the head; the last ``nn.Linear`` by default.
        lam: lambda, above 0.
        solver: "exact", "newton", "lbfgs" or "gd": one of ``metasparse_ext.implicit.SOLVERS``.
        max_iterations: Of the solver; its own default by default.

    Source: a report on convex heads for MAML and iMAML gives the definition but no hyperparameters
        and only the first of the two lines above; lambda and the solver are this package's choice.
    """

    source = Source(
        paper="a report that gives no hyperparameters",
        exact="the definition: the head's regularized optimum and its implicit gradient",
        reconstructed="lambda, the solver, and the backbone's cross term, which the source omits",
    )
    dtypes = FLOATS

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str | None = None,
        lam: float = 0.01,
        solver: SolverName = "exact",
        max_iterations: int | None = None,
    ) -> None:
        require_number(self.name, "lam", lam, above=0)
        if max_iterations is not None:
            require_size(self.name, "max_iterations", max_iterations)
        require_choice(self.name, "solver", solver, SolverName)
        steps = SOLVERS[solver].max_iterations if max_iterations is None else max_iterations
        # The solvers choose their own step lengths.
        super().__init__(model, head=head, inner_lr=1.0, inner_steps=steps)
        self.lam, self.solver = lam, solver

    def extra_repr(self) -> str:
        return f"lam={self.lam:g}, solver={self.solver!r}"

    def fit(
        self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        solution = softmax_head(
            features,
            labels,
            weight,
            bias,
            lam=self.lam,
            solver=self.solver,
            max_iterations=steps,
        )
        logits = head_logits(features.detach(), solution.weight.detach(), _detached(solution.bias))
        return solution.weight, solution.bias, self.task_losses(logits, labels)


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
