"""The protocol of every meta-learner.

All tasks of a meta-batch live on a leading axis T. Their adapted parameters are the rows of one
flat buffer (T, P), laid out by :class:`~metasparse_ext.implicit.Layout`. Tasks do not interact, so
the gradient of the sum of their losses holds every task's own gradient, and no learner ever loops
over tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import (
    FLOATS,
    LARGEST,
    require,
    require_count,
    require_number,
)
from metasparse_ext.algorithms.entry import METHODS, entry
from metasparse_ext.algorithms.finite import all_finite, refuse_nonfinite
from metasparse_ext.algorithms.models import check_model
from metasparse_ext.algorithms.records import Metrics, Source
from metasparse_ext.algorithms.signatures import spelled_out
from metasparse_ext.algorithms.slots import Slots
from metasparse_ext.algorithms.task_networks import (
    AdaptedTasks,
    cross_entropy,
    detached,
    logits_of,
    run_tasks,
)
from metasparse_ext.algorithms.tasks import (
    TakesTaskOptions,
    TaskFunction,
    check_task_options,
)
from metasparse_ext.algorithms.vmapped import each_task
from metasparse_ext.data import Inputs, Samples, TaskBatch
from metasparse_ext.implicit import Layout
from metasparse_ext.ops._operands import is_readable


class MetaLearner(nn.Module, metaclass=TakesTaskOptions):
    """A meta-learner: its parameters are the meta-parameters, its state dict is its whole state.

    A new learner overrides :meth:`adapt` and :meth:`meta_backward`. Stepping the optimizer is left
    to the caller::

        for batch in episodes(...):
            optimizer.zero_grad()
            metrics = learner.meta_backward(batch)
            optimizer.step()

    Every learner has the options ``loss``, ``metric`` and ``task_chunk`` of the tasks, too
    (:class:`~metasparse_ext.algorithms.tasks.TakesTaskOptions`).

    Args:
        model: A network from images to logits; with a ``loss``, from what the samples hold as
            ``images`` to what the loss takes. Parameters that do not require grad are shared by
            all tasks and stay as they are. They may be frozen and thawed later, too, except under
            learners that keep numbers for each adapted parameter (learned rates, tickets). Models
            that do not understand the task axis (``nn.is_task_aware``) run through
            ``torch.func.vmap`` and must not update buffers in their forward.
        inner_lr: Learning rate of the inner loop.
        inner_steps: Gradient steps of the inner loop.
        adapt_steps: Steps that :meth:`adapt` takes; as many as ``inner_steps`` by default.

    Attributes:
        source: Class attribute: where the learner is from.
        own_loss: Class attribute: why the learner takes no other loss, or empty.
        tasks_together: Why the learner cannot take its tasks in chunks, or empty.
        dtypes: Class attribute: those that the adapted parameters may have.
        iteration: Buffer that counts the calls of :meth:`meta_backward`.
        nonfinite: Buffer (), bool: whether a loss or the meta-gradient was not finite in a captured
            meta-step (:func:`metasparse_ext.capture`), which cannot raise. From then on
            ``iteration`` no longer counts; an optimizer that takes ``found_inf`` can be given it,
            to skip its steps.
        one, zero: Buffers (): the gradient of a sum of losses in each of them, and of a parameter
            that is not used.

    Raises:
        TypeError: if model is not an ``nn.Module``, or an option has another type than it should.
        ValueError: if no parameter requires grad, those that do are of several dtypes or devices,
            or a number is out of range or not finite.
    """

    source: ClassVar[Source] = Source(paper="", exact="")
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (*FLOATS, torch.bfloat16, torch.float16)

    own_loss: ClassVar[str] = ""
    tasks_together = ""

    iteration: Tensor
    nonfinite: Tensor
    one: Tensor
    zero: Tensor
    loss: TaskFunction | None
    metric: TaskFunction | None
    task_chunk: int | None = None
    # The options that it was made with, by name.
    made_with: dict[str, Any]
    # In a meta-step in chunks: the sum of the meta-gradients so far, and the present one's share.
    collecting: tuple[dict[str, Tensor], float] | None = None
    # Those of the model, inside of adapt and meta_backward.
    slots: Slots | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Prepares a learner's class.

        Its signature shows the options that it hands on to the learner above, and its methods run
        in every mode of torch (:mod:`~metasparse_ext.algorithms.entry`).
        """
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls):
            cls.__signature__ = spelled_out(cls)  # type: ignore[attr-defined]
        for method in METHODS:
            if method in vars(cls):
                setattr(cls, method, entry(vars(cls)[method]))

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float,
        inner_steps: int,
        adapt_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_model(self.name, model, self.dtypes)
        require_number(self.name, "inner_lr", inner_lr, above=0)
        require_count(self.name, "inner_steps", inner_steps, most=LARGEST)
        adapt_steps = inner_steps if adapt_steps is None else adapt_steps
        require_count(self.name, "adapt_steps", adapt_steps, most=LARGEST)
        self.model = model
        self.loss = self.metric = None
        self.inner_lr, self.inner_steps, self.adapt_steps = inner_lr, inner_steps, adapt_steps
        self.layout = self._layout_of(self._adapted_parameters())
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nonfinite", torch.zeros((), dtype=torch.bool), persistent=False)
        one = next(iter(self._adapted_parameters().values())).new_ones(())
        self.register_buffer("one", one, persistent=False)
        self.register_buffer("zero", torch.zeros_like(one), persistent=False)

    def set_task_options(
        self, loss: TaskFunction | None, metric: TaskFunction | None, task_chunk: int | None
    ) -> None:
        """Sets the options that every learner's constructor takes.

        Raises:
            TypeError, ValueError: As :func:`~metasparse_ext.algorithms.tasks.check_task_options`.
        """
        check_task_options(self, loss, metric, task_chunk)
        # Not by setattr: a loss that is a module is no part of the learner, nor of its state.
        vars(self).update(loss=loss, metric=metric, task_chunk=task_chunk)

    def adapt(self, support: Samples) -> AdaptedTasks:
        """Adapts to T support sets, images (T, N, C, H, W) and labels (T, N); changes no state.

        Raises:
            TypeError: if support is not ``Samples``, or its labels are no integers.
            ValueError: if the labels are not (T, N) in 0 to ways - 1.
            NotImplementedError: if the model cannot run through ``torch.func.vmap``.
        """
        raise NotImplementedError

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        """Adds the meta-gradient, the mean over the tasks, to ``.grad`` of the meta-parameters.

        Raises:
            FloatingPointError: if a loss or the meta-gradient is NaN or infinite; ``.grad`` and
                ``iteration`` are then as they were. Inside a captured meta-step ``nonfinite`` is
                set instead.
            TypeError: if batch is not a ``TaskBatch``, or labels are no integers.
            ValueError: if labels are not (T, N) in 0 to ways - 1.
            NotImplementedError: if the model cannot run through ``torch.func.vmap``.
        """
        raise NotImplementedError

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """A learner is no function of its input, so ``DistributedDataParallel`` cannot call it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{self.name}: a learner is not called; use meta_backward(batch) to train and "
            "adapt(support) for task networks. DistributedDataParallel would not see its "
            "gradients: over several processes call meta_backward on each one's share of the "
            "tasks, then average .grad by torch.distributed.all_reduce, as metasparse train does "
            "under torchrun"
        )

    def masks(self) -> dict[str, Tensor]:
        """The masks of the meta-parameters by layer name, (O, I) or (O, I, kh, kw)."""
        return {name: mask[0] for name, mask in self.adapted(self.start(1)).masks().items()}

    @property
    def name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        return f"inner_lr={self.inner_lr}, inner_steps={self.inner_steps}"

    # What learners are made of.

    def start(self, tasks: int) -> Tensor:
        """(T, P): the meta-parameters as the starting point of every task; one row in memory."""
        self.follow_frozen()
        with torch.no_grad():
            return self.layout.flatten(self._adapted_parameters()).expand(tasks, -1)

    def logits(self, phi: Tensor, images: Inputs) -> Any:
        """(T, N, ways): each task's network, at row t of phi (T, P), on its own images.

        With a loss of one's own, whatever the model returns, each tensor with a leading T.
        """
        parameters = self.layout.unflatten(phi, zero=self.zero)
        return run_tasks(self.name, self.model, parameters, images, self.slots)

    def losses(self, phi: Tensor, samples: Samples) -> Tensor:
        """(T,): each task's loss at row t of phi (T, P)."""
        losses = self.task_losses(self.logits(phi, samples.images), samples.labels)
        if phi.requires_grad:
            self._require_graph(losses)
        return losses

    def task_losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """(T,): each task's loss; that of logits (T, N, ways) and labels (T, N) by default."""
        if self.loss is not None:
            return each_task(self.name, "loss", self.loss, outputs, targets)
        logits = logits_of(self.name, self.model, outputs)
        return cross_entropy(logits, targets, owner=self.name)

    def task_scores(self, outputs: Any, targets: Tensor) -> Tensor:
        """(T,): each task's metric, by default its accuracy in [0, 1]."""
        if self.metric is not None:
            return each_task(self.name, "metric", self.metric, outputs, targets)
        if self.loss is not None:
            return torch.full((len(targets),), torch.nan, device=targets.device)
        logits = logits_of(self.name, self.model, outputs)
        return (logits.argmax(-1) == targets).to(logits.dtype).mean(-1)

    def gradient(self, phi: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Any]:
        """Losses (T,), each task's own gradient (T, P), and :meth:`logits`; no graph."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            logits = self.logits(phi, samples.images)
            losses = self.task_losses(logits, samples.labels)
            self._require_graph(losses)
            ones = self.one.to(losses).expand_as(losses)
            (gradient,) = torch.autograd.grad(losses, phi, ones)
        return losses.detach(), gradient, detached(logits)

    def mean_gradient(self, losses: Tensor) -> dict[str, Tensor]:
        """Autograd's gradient of the mean of losses (T,), by the name of the learner's own."""
        self._require_graph(losses)
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(losses.mean(), list(named.values()), materialize_grads=True)
        return dict(zip(named, gradients, strict=True))

    def _require_graph(self, losses: Tensor) -> None:
        """Refuses losses without a graph, of a model or a loss that detaches what it makes."""
        wanted = "one whose loss depends, differentiably, on parameters that require grad"
        require(losses.requires_grad, self.name, "model", wanted, type(self.model).__name__)

    def adapted(self, phi: Tensor) -> AdaptedTasks:
        """The task networks whose parameters are the rows of phi (T, P)."""
        return AdaptedTasks(self.model, self.layout.unflatten(phi.detach()))

    def by_parameter(self, gradient: Tensor) -> dict[str, Tensor]:
        """The mean of the tasks' meta-gradients (T, P), by the name of the learner's parameter."""
        parts = self.layout.unflatten(gradient.mean(0))
        return {f"model.{name}": part for name, part in parts.items()}

    def finish(
        self,
        gradient: Tensor | Mapping[str, Tensor],
        phi: Tensor,
        trace: list[Tensor],
        query: Samples,
        logits: Any,
        solved: Tensor | None = None,
    ) -> Metrics:
        """Ends a meta-step: checks the losses, accumulates the meta-gradient, counts, and measures.

        Args:
            gradient: (T, P) each task's meta-gradient; or, from learners that have parameters
                beside those they adapt, the mean over the tasks by the name of the parameter.
            phi: (T, P) the adapted parameters.
            trace: The per-task losses (T,) of every inner step, and last of the query set.
            query: The query sets, and :meth:`logits` for them.
            solved: (T,) bool, from learners that solve a linear system for each task: whether the
                solve of a task met finite values only.
        """
        mean = self.by_parameter(gradient) if isinstance(gradient, Tensor) else gradient
        self._require_finite(torch.stack(trace), mean, solved)
        if self.collecting is None:
            self.end_step(mean)
        else:
            sums, share = self.collecting
            for name, part in mean.items():
                sums[name] = part * share + sums[name] if name in sums else part * share
        with torch.no_grad():
            scores = self.task_scores(logits, query.labels)
        return Metrics(
            loss=trace[-1],
            accuracy=scores,
            active=self.adapted(phi).active(),
            support_loss=trace[-2] if len(trace) > 1 else torch.full_like(trace[-1], torch.nan),
        )

    def end_step(self, gradient: Mapping[str, Tensor]) -> None:
        """Adds the meta-gradient, by the name of the learner's parameter, to ``.grad``; counts."""
        self._accumulate(gradient)
        self.iteration += ~self.nonfinite

    def follow_frozen(self) -> None:
        """Lays the buffer out anew if parameters were frozen, or thawed, since it was laid out."""
        parameters = self._adapted_parameters()
        if tuple(parameters) == self.layout.names:
            return
        layout = self._layout_of(parameters)
        self._lay_out_anew(layout)
        self.layout = layout

    def _layout_of(self, parameters: Mapping[str, Tensor]) -> Layout:
        wanted = "one with parameters that require grad"
        require(bool(parameters), self.name, "model", wanted, type(self.model))
        return Layout.of(parameters)

    def _lay_out_anew(self, layout: Layout) -> None:
        """Fits what a learner keeps for each adapted parameter, if anything, to a new layout."""

    def _refuse_new_layout(self, kept: str, layout: Layout) -> NoReturn:
        """For learners whose state cannot be fitted to it."""
        changed = sorted(set(self.layout.names) ^ set(layout.names))
        raise ValueError(
            f"{self.name}: expected the same parameters of the model to require grad as when the "
            f"learner was made, because it keeps {kept} for each; changed: {', '.join(changed)}. "
            "Freeze parameters before making the learner"
        )

    def _adapted_parameters(self) -> dict[str, Tensor]:
        """The meta-parameters that the inner loop adapts, in the order of the flat buffer."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _accumulate(self, gradient: Mapping[str, Tensor]) -> None:
        """Adds a gradient by name to ``.grad``, in one launch; sets it where there is none."""
        named = dict(self.named_parameters())
        parameters = [named[name] for name in gradient]
        grads = [p.grad for p in parameters if p.grad is not None]
        if len(grads) == len(parameters):
            torch._foreach_add_(grads, list(gradient.values()))
            return
        for parameter, part in zip(parameters, gradient.values(), strict=True):
            parameter.grad = part if parameter.grad is None else parameter.grad.add_(part)

    def _require_finite(
        self, losses: Tensor, gradient: Mapping[str, Tensor], solved: Tensor | None
    ) -> None:
        """Raises if a loss, a solve or the meta-gradient is not finite.

        Where it cannot be read, as under capture, sets ``nonfinite`` instead.
        """
        finite = all_finite(losses, gradient, solved)
        if not is_readable(finite):
            self.nonfinite |= ~finite
        elif not bool(finite):
            refuse_nonfinite(self.name, losses, solved, int(self.iteration))


MetaLearner.__signature__ = spelled_out(MetaLearner)  # type: ignore[attr-defined]
