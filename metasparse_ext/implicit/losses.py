"""Any module as T task networks, seen as functions of one flat buffer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metasparse_ext._arguments import (
    refuse,
    require_callable,
    require_flag,
    require_like,
    require_tensor,
    require_type,
)
from metasparse_ext.implicit.layout import Layout


def task_outputs(
    module: nn.Module,
    layout: Layout,
    inputs: Tensor,
    *,
    task_aware: bool = False,
) -> Callable[[Tensor], Tensor]:
    """The outputs of T copies of a module as a function of their parameters.

    Args:
        module: any module; parameters outside ``layout`` are shared by the tasks.
        layout: which parameters the buffer holds, e.g. ``Layout.of(module)``.
        inputs: (T, N, ...) each task's inputs.
        task_aware: the module itself takes a task axis in its inputs and parameters. Otherwise
            it is mapped over the tasks by ``torch.func.vmap``; then nothing in it may update a
            buffer in place (batch normalisation: ``track_running_stats=False``).

    Returns:
        A function from (T, P) to (T, N, ...).
    """

    _check("task_outputs", module, layout, inputs, task_aware)

    def call(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,))

    run = call if task_aware else torch.func.vmap(call, randomness="different")
    return lambda flat: run(layout.unflatten(flat), inputs)


def task_losses(
    module: nn.Module,
    layout: Layout,
    inputs: Tensor,
    targets: Tensor,
    *,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    task_aware: bool = False,
) -> Callable[[Tensor], Tensor]:
    """The losses of T copies of a module as a function of their parameters.

    Args:
        module, layout, inputs, task_aware: as in :func:`task_outputs`.
        targets: (T, N, ...) each task's targets.
        criterion: maps one task's outputs and targets to its scalar loss; it is mapped over T.

    Returns:
        A function from (T, P) to (T,), as :func:`linearize` and :func:`implicit_gradient` take it.
    """
    _check("task_losses", module, layout, inputs, task_aware)
    _require_tasks("task_losses", "targets", targets, inputs.shape[0])
    require_like("task_losses", "targets", targets, "inputs", inputs, dtype=False)
    require_callable("task_losses", "criterion", criterion)
    outputs = task_outputs(module, layout, inputs, task_aware=task_aware)
    loss = torch.func.vmap(criterion)
    return lambda flat: loss(outputs(flat), targets)


def _check(owner: str, module: object, layout: object, inputs: Tensor, task_aware: object) -> None:
    require_type(owner, "module", module, nn.Module, "a module")
    require_type(owner, "layout", layout, Layout, "a Layout")
    _require_tasks(owner, "inputs", inputs)
    require_flag(owner, "task_aware", task_aware)


def _require_tasks(owner: str, name: str, got: Tensor, tasks: int | str = "T") -> None:
    require_tensor(owner, name, got)
    if got.dim() < 2 or tasks not in ("T", got.shape[0]):
        refuse(owner, name, f"of shape ({tasks}, N, ...)", str(tuple(got.shape)))
