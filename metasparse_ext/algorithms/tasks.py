"""What every learner can be told of its tasks: their loss, their metric, and how many at a time."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from metasparse_ext._arguments import refuse, require_callable, require_size, shown
from metasparse_ext.algorithms.records import Metrics
from metasparse_ext.data import Samples, TaskBatch

if TYPE_CHECKING:
    from metasparse_ext.algorithms.base import MetaLearner
    from metasparse_ext.algorithms.task_networks import AdaptedTasks

# From the outputs and the targets of one task, (N, ...) each, to a number. The outputs are what the
# model returns: a tensor, or a tuple or a dict of tensors.
TaskFunction = Callable[[Any, Tensor], Tensor]

Learner = TypeVar("Learner")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """(): the fraction of the images of a task whose class has the largest logit.

    The metric of a learner with the usual loss; as ``metric=`` it is that of one with another.

    Args:
        logits: (N, ways).
        labels: (N,).
    """
    return (logits.argmax(-1) == labels).to(logits.dtype).mean()


class TakesTaskOptions(type):
    """The type of learners' classes, whose constructors all take three options more.

    A learner's own constructor knows nothing of them:

    - ``loss``: What a task minimizes, in the inner loop and as a query loss, in place of the mean
      cross-entropy: a differentiable function of a task's outputs (N, ...) and targets (N, ...),
      such as ``torch.nn.functional.mse_loss``. The ``labels`` of samples are then targets (T, N,
      ...) of any dtype.
    - ``metric``: What ``Metrics.accuracy`` holds, a function like the loss, such as
      ``metasparse_ext.algorithms.tasks.accuracy``; with a loss and no metric it is NaN.
    - ``task_chunk``: The most tasks that a meta-step, ``adapt`` or an evaluation computes at a
      time. The meta-gradient is that of all tasks, the memory that of so many.
    """

    def __call__(
        cls: type[Learner],
        *args: Any,
        loss: TaskFunction | None = None,
        metric: TaskFunction | None = None,
        task_chunk: int | None = None,
        **options: Any,
    ) -> Learner:
        # Its buffers are written to in meta-steps, which inference mode would rule out for good.
        with torch.inference_mode(False):
            learner: Any = type.__call__(cls, *args, **options)
        learner.set_task_options(loss, metric, task_chunk)
        vars(learner)["made_with"] = made_with(cls, args, options)
        return learner


def made_with(kind: type, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The options of a learner's constructor by name, those that were not given by their default.

    Args:
        kind: The class.
        args: What it was called with by position; the first is the model.
        options: What it was called with by name.
    """
    _, *parameters = inspect.signature(kind).parameters.values()
    of_tasks = inspect.signature(TakesTaskOptions.__call__).parameters
    found = {
        p.name: p.default for p in parameters if p.default is not p.empty and p.name not in of_tasks
    }
    by_position = dict(zip((p.name for p in parameters), args[1:], strict=False))
    named = {name: value for name, value in options.items() if name != "model"}
    return {**found, **by_position, **named}


def check_task_options(
    learner: MetaLearner,
    loss: TaskFunction | None,
    metric: TaskFunction | None,
    task_chunk: int | None,
) -> None:
    """Refuses options of another type, or that a learner cannot follow.

    Raises:
        TypeError: if an option is of another type.
        ValueError: if the learner has a loss of its own, or cannot take its tasks one by one.
    """
    function = "a function of the outputs and targets of a task, or None"
    for name, given in {"loss": loss, "metric": metric}.items():
        if given is not None:
            require_callable(learner.name, name, given, function)
    if task_chunk is not None:
        require_size(learner.name, "task_chunk", task_chunk)
    if loss is not None and learner.own_loss:
        refuse(learner.name, "loss", f"None: {learner.own_loss}", shown(loss))
    if task_chunk is not None and learner.tasks_together:
        refuse(learner.name, "task_chunk", f"None: {learner.tasks_together}", shown(task_chunk))


def in_chunks(
    learner: MetaLearner, step: Callable[[Any, TaskBatch], Metrics], batch: TaskBatch, size: int
) -> Metrics:
    """A meta-step on chunks of so many tasks; its meta-gradient is the mean over all tasks.

    Nothing is accumulated, and no iteration counted, before the last chunk is done.
    """
    tasks = len(batch.support.labels)
    sums: dict[str, Tensor] = {}
    found = []
    for chunk in chunks(batch, size):
        learner.collecting = sums, len(chunk.support.labels) / tasks
        try:
            found.append(step(learner, chunk))
        finally:
            learner.collecting = None
    learner.end_step(sums)
    fields = ("loss", "accuracy", "active", "support_loss")
    return Metrics(**{name: torch.cat([getattr(m, name) for m in found]) for name in fields})


def adapted_in_chunks(
    learner: MetaLearner, adapt: Callable[[Any, Samples], AdaptedTasks], support: Samples, size: int
) -> AdaptedTasks:
    """The networks of all tasks, adapted to so many at a time."""
    parts = [
        adapt(learner, support.tasks(slice(first, first + size)))
        for first in range(0, len(support.labels), size)
    ]
    joined = copy.copy(parts[0])
    joined.parameters = {
        name: torch.cat([part.parameters[name] for part in parts]) for name in joined.parameters
    }
    return joined


def chunks(batch: TaskBatch, size: int | None) -> Iterator[TaskBatch]:
    """A meta-batch in parts of so many tasks; with None, whole."""
    tasks = len(batch.support.labels)
    size = tasks if size is None else size
    for first in range(0, tasks, size):
        yield batch.tasks(slice(first, first + size))
