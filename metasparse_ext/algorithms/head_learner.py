"""What the learners share that adapt the last layer alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from metasparse_ext._arguments import refuse, require_choice
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.records import Metrics
from metasparse_ext.algorithms.samples import check_classes
from metasparse_ext.algorithms.slots import Slots
from metasparse_ext.algorithms.task_networks import AdaptedTasks, logits_of
from metasparse_ext.algorithms.vmapped import over_tasks
from metasparse_ext.data import Inputs, Samples, TaskBatch
from metasparse_ext.nn import Linear

# No parameters in place of the model's own.
_OWN: Mapping[str, Tensor] = MappingProxyType({})


class HeadLearner(MetaLearner):
    """A meta-learner whose inner loop sees the backbone's features and moves the head alone.

    The backbone is the same for all tasks, so each set of images passes through it once, whatever
    the inner loop does; the inner problem is a softmax regression, convex in the head, or has a
    solution in closed form. A learner
    overrides :meth:`fit`; the meta-gradient is autograd's through ``fit`` and the backbone, so it
    has the direct term and the cross term (through the support features that the head was fitted
    to).

    Args:
        model: A network whose output is the output of its head.
        head: Name of the head, an ``nn.Linear`` inside the model; the last one by default.
        inner_lr, inner_steps, adapt_steps: As in :class:`MetaLearner`.

    Raises:
        ValueError: if the model has no ``nn.Linear`` of that name, or one that computes something
            else than W x + b with a weight of its own.
    """

    own_loss = "the inner problem is a softmax regression"

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str | None = None,
        inner_lr: float,
        inner_steps: int,
        adapt_steps: int | None = None,
    ) -> None:
        super().__init__(model, inner_lr=inner_lr, inner_steps=inner_steps, adapt_steps=adapt_steps)
        self.head = head_name(self, head)
        self._require_affine()

    def fit(
        self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Fits the heads of T tasks, differentiably.

        Args:
            features, labels: The support sets, (T, N, D) and (T, N).
            weight, bias: The meta-learned head, (C, D) and (C,) or None.
            steps: How many, where the learner counts steps.

        Returns:
            weight (T, C, D), bias (T, C) or None, and the support losses (T,) of the last step, or
            None when there was no step.
        """
        raise NotImplementedError

    def adapt(self, support: Samples) -> AdaptedTasks:
        with torch.no_grad():
            weight, bias, _ = self._fit(support, self.adapt_steps)
        parameters = {f"{self._prefix}weight": weight}
        if bias is not None:
            parameters[f"{self._prefix}bias"] = bias
        return AdaptedTasks(self.model, parameters)

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        start = self.start(len(batch.query.labels))
        with torch.enable_grad():
            phi = start.detach().requires_grad_() if self._task_aware else None
            weight, bias, support_loss = self._fit(batch.support, self.inner_steps, phi)
            logits = head_logits(self.features(batch.query.images, phi), weight, bias)
            losses = self.task_losses(logits, batch.query.labels)
            gradient = self._gradient_through(losses, phi)
        trace = [loss.detach() for loss in (support_loss, losses) if loss is not None]
        return self.finish(gradient, start, trace, batch.query, logits.detach())

    def features(self, images: Inputs, phi: Tensor | None = None) -> Tensor:
        """What the head sees: images (T, N, ...) to (T, N, D), batch statistics per task.

        By the model's own parameters; or, where it takes the tasks' axis, by phi (T, P).
        """
        if self._task_aware:
            return self._features(
                images, {} if phi is None else self.layout.unflatten(phi, zero=self.zero)
            )
        return over_tasks(self.name, self.model, self._features, images)

    @property
    def _task_aware(self) -> bool:
        return (self.slots or Slots(self.model)).task_aware

    def _gradient_through(self, losses: Tensor, phi: Tensor | None) -> dict[str, Tensor]:
        """The gradient of the mean loss by parameter; the backbone's is that in the rows of phi.

        So one sum over the tasks serves all parameters.
        """
        if phi is None:
            return self.mean_gradient(losses)
        adapted = {f"model.{name}" for name in self.layout.names}
        head = {f"model.{self._prefix}{name}" for name in ("weight", "bias")}
        own = {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and (name in head or name not in adapted)
        }
        share = (self.one.to(losses) / len(losses)).expand_as(losses)
        rows, *parts = torch.autograd.grad(
            losses, [phi, *own.values()], share, materialize_grads=True
        )
        flat = self.layout.unflatten(rows.sum(0))
        found = {f"model.{name}": part for name, part in flat.items()}
        return found | dict(zip(own, parts, strict=True))

    def _features(self, images: Inputs, parameters: Mapping[str, Tensor] = _OWN) -> Tensor:
        seen: list[tuple[Tensor, Tensor]] = []

        def note(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen.append((args[0], out))

        self._require_affine()
        # Before other hooks, which may change the output.
        hook = self._head.register_forward_hook(note, prepend=True)
        try:
            output = (self.slots or Slots(self.model)).call(parameters, images)
        finally:
            hook.remove()
        logits_of(self.name, self.model, output)
        if len(seen) != 1 or seen[0][1] is not output:
            wanted = "the layer whose output is the model's, called once"
            got = f"{self.head!r}, called {len(seen)} times"
            got += ", whose output is changed afterwards" if len(seen) == 1 else ""
            refuse(self.name, "head", wanted, f"{got}; head=NAME takes another")
        return seen[0][0]

    def _fit(
        self, support: Samples, steps: int, phi: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        check_classes(self.name, support.labels, self._head.out_features)
        features = self.features(support.images, phi)
        return self.fit(features, support.labels, self._head.weight, self._head.bias, steps)

    def _require_affine(self) -> None:
        """Refuses a head that is not the layer which the inner problem fits."""
        head = self._head
        known = type(head).forward in (nn.Linear.forward, Linear.forward)
        if "weight" not in head._parameters:
            got = "whose weight something else makes, as weight normalization does"
        elif not known or "forward" in vars(head):
            got = f"a {type(head).__name__} whose forward is another"
        elif (
            sum(p is head.weight for m in self.model.modules() for p in m._parameters.values()) > 1
        ):
            got = "whose weight is that of another layer, too"
        else:
            return
        wanted = "an nn.Linear that computes W x + b with a weight of its own"
        refuse(self.name, "head", wanted, f"{self.head!r}, {got}")

    @property
    def _head(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_submodule(self.head))

    @property
    def _prefix(self) -> str:
        return f"{self.head}." if self.head else ""


def head_name(learner: MetaLearner, head: str | None) -> str:
    """The head of a learner's model: the ``nn.Linear`` of that name, or the last one."""
    linears = [n for n, m in learner.model.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        wanted = "one with an nn.Linear, whose output is the model's, as its head"
        refuse(learner.name, "model", wanted, f"{type(learner.model).__name__} without")
    head = linears[-1] if head is None else head
    require_choice(learner.name, "head", head, linears)
    return head


def head_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(T, N, D) to (T, N, C) by weight (C, D) or (T, C, D) and bias (C,), (T, C) or None."""
    scores = features @ weight.mT
    return scores if bias is None else scores + bias.unsqueeze(-2)
