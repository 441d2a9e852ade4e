"""The protocol of every meta-learner, and what they share.

All tasks of a meta-batch live on a leading axis T. Their adapted parameters are the rows of one
flat buffer (T, P), laid out by :class:`~metasparse_ext.implicit.Layout`. Tasks do not interact, so
the gradient of the sum of their losses holds every task's own gradient, and no learner ever loops
over tasks.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metasparse_ext._capture import observed
from metasparse_ext.algorithms.entry import METHODS, entry
from metasparse_ext.algorithms.labels import check_classes
from metasparse_ext.implicit import Layout
from metasparse_ext.nn import MaskedConv2d, is_task_aware

if TYPE_CHECKING:
    from metasparse_ext.data import Samples, TaskBatch


@dataclass(frozen=True)
class Metrics:
    """What one meta-step measured: a value per task, without a graph, on the learner's device.

    Attributes:
        loss: (T,) query cross-entropy after adaptation.
        accuracy: (T,) query accuracy after adaptation, in [0, 1].
        active: (T,) fraction of the kernels of all masked convolutions that the adapted task uses.
        support_loss: (T,) support cross-entropy before the last inner step.
    """

    loss: Tensor
    accuracy: Tensor
    active: Tensor
    support_loss: Tensor


@dataclass(frozen=True)
class Source:
    """The origin of a learner.

    Attributes:
        paper: What it is published in.
        exact: What follows the paper or its public code to the letter.
        reconstructed: What the public sources leave open and is decided here, or where this
            package departs from them; empty if neither.
    """

    paper: str
    exact: str
    reconstructed: str = ""


class AdaptedTasks:
    """T task networks: a model and its adapted parameters.

    Calling it with images (T, N, C, H, W) returns the logits (T, N, ways); each task's images pass
    through its own network, with batch statistics over the N images of that task.

    Attributes:
        model: The network. ``parameters`` take the place of its own.
        parameters: Name to tensor (T, ...), without a graph.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self.model = model
        self.parameters = dict(parameters)

    def __call__(self, images: Tensor) -> Tensor:
        return task_call(self.model, self.parameters, images)

    @property
    def tasks(self) -> int:
        return next(iter(self.parameters.values())).shape[0]

    @torch.no_grad()
    def masks(self) -> dict[str, Tensor]:
        """The masks by layer name: (T, O, I), or (T, O, I, kh, kw) with one entry a weight."""
        return task_masks(self.model, self.parameters, self.tasks)

    def active(self) -> Tensor:
        """(T,) fraction of all masked convolutions' kernels in use; 1 where there are none."""
        masks = self.masks()
        if masks:
            return active_fraction(masks)
        parameter = next(iter(self.parameters.values()))
        return parameter.new_ones(self.tasks)


class MetaLearner(nn.Module):
    """A meta-learner: its parameters are the meta-parameters, its state dict is its whole state.

    A new learner overrides :meth:`adapt` and :meth:`meta_backward`. Stepping the optimizer is left
    to the caller::

        for batch in episodes(...):
            optimizer.zero_grad()
            metrics = learner.meta_backward(batch)
            optimizer.step()

    Args:
        model: A network from images to logits. Parameters that do not require grad are shared by
            all tasks and stay as they are. They may be frozen and thawed later, too, except under
            learners that keep numbers for each adapted parameter (learned rates, tickets). Models
            that do not understand the task axis (``nn.is_task_aware``) run through
            ``torch.func.vmap`` and must not update buffers in their forward.
        inner_lr: Learning rate of the inner loop.
        inner_steps: Gradient steps of the inner loop.
        adapt_steps: Steps that :meth:`adapt` takes; as many as ``inner_steps`` by default.

    Attributes:
        source: Class attribute: where the learner is from.
        iteration: Buffer that counts the calls of :meth:`meta_backward`.
        nonfinite: Buffer (), bool: whether a loss or the meta-gradient was not finite in a captured
            meta-step (:func:`metasparse_ext.capture`), which cannot raise. From then on
            ``iteration`` no longer counts; an optimizer that takes ``found_inf`` can be given it,
            to skip its steps.

    Raises:
        TypeError: if model is not an ``nn.Module``, or an option has another type than it should.
        ValueError: if no parameter requires grad, or a number is out of range or not finite.
    """

    source: ClassVar[Source] = Source(paper="", exact="")

    iteration: Tensor
    nonfinite: Tensor

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
        if not isinstance(model, nn.Module):
            raise TypeError(f"{self.name}: model must be an nn.Module, got {type(model).__name__}")
        self._require_number("inner_lr", inner_lr, above=0)
        self._require_count("inner_steps", inner_steps)
        adapt_steps = inner_steps if adapt_steps is None else adapt_steps
        self._require_count("adapt_steps", adapt_steps)
        self._refuse_running_statistics(model)
        self.model = model
        self.inner_lr, self.inner_steps, self.adapt_steps = inner_lr, inner_steps, adapt_steps
        parameters = self._adapted_parameters()
        self._require(bool(parameters), "model", "one with parameters that require grad", "none")
        self.layout = Layout.of(parameters)
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nonfinite", torch.zeros((), dtype=torch.bool), persistent=False)

    def adapt(self, support: Samples) -> AdaptedTasks:
        """Adapts to T support sets, images (T, N, C, H, W) and labels (T, N); changes no state.

        Raises:
            ValueError: if the labels are not integers (T, N) in 0 to ways - 1.
        """
        raise NotImplementedError

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        """Adds the meta-gradient, the mean over the tasks, to ``.grad`` of the meta-parameters.

        Raises:
            FloatingPointError: if a loss or the meta-gradient is NaN or infinite; ``.grad`` and
                ``iteration`` are then as they were. Inside a captured meta-step ``nonfinite`` is
                set instead.
            ValueError: if labels are not integers (T, N) in 0 to ways - 1.
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
        parameters = self._adapted_parameters()
        self._follow_frozen(parameters)
        with torch.no_grad():
            return self.layout.flatten(parameters).expand(tasks, -1)

    def logits(self, phi: Tensor, images: Tensor) -> Tensor:
        """(T, N, ways): each task's network, at row t of phi (T, P), on its own images."""
        return task_call(self.model, self.layout.unflatten(phi), images)

    def losses(self, phi: Tensor, samples: Samples) -> Tensor:
        """(T,): each task's mean cross-entropy at row t of phi (T, P)."""
        return cross_entropy(self.logits(phi, samples.images), samples.labels)

    def gradient(self, phi: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (T,), each task's own gradient (T, P), and the logits (T, N, ways); no graph."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            logits = self.logits(phi, samples.images)
            losses = cross_entropy(logits, samples.labels)
            (gradient,) = torch.autograd.grad(losses, phi, torch.ones_like(losses))
        return losses.detach(), gradient, logits.detach()

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
        logits: Tensor,
        solved: Tensor | None = None,
    ) -> Metrics:
        """Ends a meta-step: checks the losses, accumulates the meta-gradient, counts, and measures.

        Args:
            gradient: (T, P) each task's meta-gradient; or, from learners that have parameters
                beside those they adapt, the mean over the tasks by the name of the parameter.
            phi: (T, P) the adapted parameters.
            trace: The per-task losses (T,) of every inner step, and last of the query set.
            query: The query sets, and ``logits`` (T, N, ways) for them.
            solved: (T,) bool, from learners that solve a linear system for each task: whether the
                solve of a task met finite values only.
        """
        mean = self.by_parameter(gradient) if isinstance(gradient, Tensor) else gradient
        self._require_finite(torch.stack(trace), mean, solved)
        self._accumulate(mean)
        self.iteration += ~self.nonfinite
        return Metrics(
            loss=trace[-1],
            accuracy=(logits.argmax(-1) == query.labels).to(logits.dtype).mean(-1),
            active=self.adapted(phi).active(),
            support_loss=trace[-2] if len(trace) > 1 else torch.full_like(trace[-1], torch.nan),
        )

    def _follow_frozen(self, parameters: Mapping[str, Tensor]) -> None:
        """Lays the buffer out anew if parameters were frozen, or thawed, since it was laid out."""
        if tuple(parameters) == self.layout.names:
            return
        self._require(bool(parameters), "model", "one with parameters that require grad", "none")
        layout = Layout.of(parameters)
        self._lay_out_anew(layout)
        self.layout = layout

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

    def _refuse_running_statistics(self, model: nn.Module) -> None:
        """Refuses tracked statistics: tasks would share them, and vmap cannot update them."""
        for name, module in model.named_modules():
            if module.training and getattr(module, "track_running_stats", False):
                raise ValueError(
                    f"{self.name}: {name!r} updates its running statistics in its forward, which "
                    "tasks would share; use metasparse_ext.nn.BatchNorm2d, or pass the model "
                    "through torch.func.replace_all_batch_norm_modules_ first"
                )

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

        Under capture sets ``nonfinite`` instead.
        """
        norms = torch.stack(torch._foreach_norm(list(gradient.values()), torch.inf))
        finite = losses.isfinite().all() & norms.isfinite().all()
        if solved is not None:
            finite &= solved.all()
        if not observed():
            self.nonfinite |= ~finite
            return
        if bool(finite):
            return
        advice = "a smaller inner_lr or meta learning rate usually helps"
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong) == 0:
            self._require_solved(solved)
            raise FloatingPointError(
                f"{self.name}: the meta-gradient is not finite in iteration {int(self.iteration)} "
                f"although every loss is; {advice}"
            )
        step, task = wrong[0].tolist()
        where = "on the query set" if step == len(losses) - 1 else f"at inner step {step}"
        raise FloatingPointError(
            f"{self.name}: the loss of task {task} is {losses[step, task].item()} {where} "
            f"in iteration {int(self.iteration)}; {advice}"
        )

    def _require_solved(self, solved: Tensor | None) -> None:
        """Raises if the linear solve of a task met a value that is not finite."""
        if solved is None or bool(solved.all()):
            return
        raise FloatingPointError(
            f"{self.name}: the conjugate-gradient solve of task {int((~solved).nonzero()[0])} met "
            f"a value that is not finite in iteration {int(self.iteration)} although every loss "
            "is finite; a larger lambda, a damping of moderate size or a smaller inner_lr usually "
            "helps"
        )

    def _require(self, holds: bool, argument: str, expected: str, got: object) -> None:
        if not holds:
            raise ValueError(f"{self.name}: {argument} must be {expected}, got {got!r}")

    def _require_type(self, holds: bool, argument: str, expected: str, got: object) -> None:
        if not holds:
            raise TypeError(
                f"{self.name}: {argument} must be {expected}, got {type(got).__name__} {got!r}"
            )

    def _require_number(
        self,
        argument: str,
        got: object,
        *,
        above: float | None = None,
        least: float | None = None,
    ) -> None:
        """Refuses what is not a finite real number, or not in the range asked for."""
        if not isinstance(got, numbers.Real) or isinstance(got, bool):
            self._require_type(False, argument, "a number", got)
            return
        number = float(got)
        self._require(math.isfinite(number), argument, "finite", got)
        self._require(above is None or number > above, argument, f"above {above}", got)
        self._require(least is None or number >= least, argument, f"at least {least}", got)

    def _require_count(self, argument: str, got: object, *, least: int = 0) -> None:
        """Refuses what is not an integer, or too small."""
        whole = isinstance(got, numbers.Integral) and not isinstance(got, bool)
        self._require_type(whole, argument, "an integer", got)
        self._require_number(argument, got, least=least)

    def _require_flag(self, argument: str, got: object) -> None:
        """Refuses what is not a bool: any other value would count as one, the text "no" as true."""
        self._require_type(isinstance(got, bool), argument, "True or False", got)

    def _require_choice(self, argument: str, kind: Any, got: object) -> None:
        """Refuses a value that the ``Literal`` type ``kind`` does not name."""
        choices = get_args(kind)
        self._require(got in choices, argument, f"one of {choices}", got)


def task_call(model: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Runs T task networks, each with its own parameters on its own images.

    A model that understands the task axis runs once on everything; any other runs through
    ``torch.func.vmap`` over T.

    Args:
        model: From images to logits.
        parameters: Name to (T, ...). Parameters and buffers that are not named are the model's own,
            shared.
        images: (T, N, C, H, W), or (T, N, ...) for a model that takes other inputs.

    Returns:
        (T, N, ways).

    Raises:
        ValueError: if the images are those of another number of tasks.
        TypeError: if the model does not return a tensor.
    """
    tasks = next(iter(parameters.values())).shape[0]
    if images.shape[0] != tasks:
        raise ValueError(
            f"task_call: images must be (T, N, ...) with T = {tasks} like the parameters, "
            f"got shape {tuple(images.shape)}"
        )
    if is_task_aware(model):
        return logits_of(model, functional_call(model, dict(parameters), (images,)))

    def one_task(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return logits_of(model, functional_call(model, own, (x,)))

    return torch.func.vmap(one_task, randomness="different")(dict(parameters), images)


def logits_of(model: nn.Module, output: object) -> Tensor:
    """What a model returned, if that is a tensor.

    Raises:
        TypeError: if it is a dict, a tuple or anything else.
    """
    if isinstance(output, Tensor):
        return output
    raise TypeError(
        f"model: expected {type(model).__name__} to return its logits, a tensor, got "
        f"{type(output).__name__}; wrap it in a module that returns them alone"
    )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(T,): mean cross-entropy of each task, for logits (T, N, ways) and labels (T, N).

    Raises:
        ValueError: if the labels have another shape, or one is no class of the logits.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"cross_entropy: labels must be (T, N) = {tuple(logits.shape[:-1])} like the logits, "
            f"got {tuple(labels.shape)}"
        )
    check_classes(labels, logits.shape[-1])
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten().long(), reduction="none")
    return losses.unflatten(0, labels.shape).mean(1)


def mean_gradient(losses: Tensor, learner: MetaLearner) -> dict[str, Tensor]:
    """Autograd's gradient of the mean of losses (T,), by the name of the learner's parameter."""
    named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(losses.mean(), list(named.values()), materialize_grads=True)
    return dict(zip(named, gradients, strict=True))


def task_masks(model: nn.Module, parameters: Mapping[str, Tensor], tasks: int) -> dict[str, Tensor]:
    """The mask of every masked convolution, with a task axis, by the name of its layer."""
    masks = {}
    for name, layer in model.named_modules():
        if isinstance(layer, MaskedConv2d):
            prefix = f"{name}." if name else ""
            weight = parameters.get(f"{prefix}weight", layer.weight)
            own = {
                key.removeprefix(f"{prefix}masker."): value
                for key, value in parameters.items()
                if key.startswith(f"{prefix}masker.")
            }
            mask = functional_call(layer.masker, own, (weight,))
            shared = mask.dim() in (2, 4)
            masks[name] = mask.expand(tasks, *mask.shape) if shared else mask
    return masks


def active_fraction(masks: Mapping[str, Tensor]) -> Tensor:
    """(T,) fraction of kernels in use, those with at least one active weight, over all layers."""
    kernels = [(m if m.dim() == 3 else m.flatten(-2).amax(-1)).flatten(1) for m in masks.values()]
    return torch.cat(kernels, 1).ne(0).float().mean(1)


def spelled_out(kind: type) -> Signature:
    """The signature of a class's own constructor, whose ``**`` is replaced by what it stands for.

    A constructor that ends in ``**options`` hands them on to that of the class above. Its signature
    then has the keyword arguments of both, those from above first; one that both name has the
    annotation and the default of the class's own.
    """
    _, *parameters = _evaluated(vars(kind)["__init__"]).parameters.values()
    if not parameters or parameters[-1].kind is not Parameter.VAR_KEYWORD:
        return Signature(parameters)
    own = {p.name: p for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    above = inspect.signature(kind.__mro__[1]).parameters.values()
    handed_on = {p.name: p for p in above if p.kind is Parameter.KEYWORD_ONLY}
    positional = [p for p in parameters[:-1] if p.name not in own]
    return Signature([*positional, *(handed_on | own).values()])


def _evaluated(constructor: Any) -> Signature:
    """A signature whose annotations are types, or strings where they name what is not imported."""
    try:
        return inspect.signature(constructor, eval_str=True)
    except NameError:
        return inspect.signature(constructor)
