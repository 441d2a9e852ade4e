"""What a meta-step is refused for: a loss, a solve or a meta-gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metasparse_ext.ops._operands import is_readable

_ADVICE = "a smaller inner_lr or meta learning rate usually helps"


def all_finite(losses: Tensor, gradient: Mapping[str, Tensor], solved: Tensor | None) -> Tensor:
    """() bool, on the device: whether losses, meta-gradient and solves are finite."""
    # A largest number is NaN where one of them is; a comparison takes fewer launches than isfinite.
    largest = torch.linalg.vector_norm(losses, torch.inf)
    finite = are_finite(list(gradient.values())) & (largest < torch.inf)
    return finite if solved is None else finite & solved.all()


def are_finite(tensors: list[Tensor]) -> Tensor:
    """() bool, on the device: whether no element of any of the tensors is NaN or infinite."""
    if tensors[0].is_cpu and is_readable(tensors[0]):
        # Vectorized there, where a largest number takes 15 times as long; but it may overflow.
        norms = torch._foreach_norm(tensors)
        if all(math.isfinite(float(norm)) for norm in norms):
            return torch.ones((), dtype=torch.bool)
    norms = torch._foreach_norm(tensors, torch.inf, dtype=torch.float64)
    return torch.stack(norms).amax() < torch.inf


def refuse_nonfinite(owner: str, losses: Tensor, solved: Tensor | None, iteration: int) -> None:
    """Says which it was.

    Args:
        owner: The learner.
        losses: (steps, T) of every inner step, and last of the query set.
        solved: (T,) bool, whether a task's solve met finite values only; None without solves.
        iteration: That of the meta-step.

    Raises:
        FloatingPointError: always.
    """
    wrong = (~losses.isfinite()).nonzero()
    if len(wrong):
        step, task = wrong[0].tolist()
        where = "on the query set" if step == len(losses) - 1 else f"at inner step {step}"
        raise FloatingPointError(
            f"{owner}: the loss of task {task} is {losses[step, task].item()} {where} "
            f"in iteration {iteration}; {_ADVICE}"
        )
    if solved is not None and not bool(solved.all()):
        raise FloatingPointError(
            f"{owner}: the conjugate-gradient solve of task {int((~solved).nonzero()[0])} met "
            f"a value that is not finite in iteration {iteration} although every loss is finite; "
            "a larger lambda, a damping of moderate size or a smaller inner_lr usually helps"
        )
    raise FloatingPointError(
        f"{owner}: the meta-gradient is not finite in iteration {iteration} although every loss "
        f"is; {_ADVICE}"
    )
