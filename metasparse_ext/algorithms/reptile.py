"""Reptile: move the initialization towards where training on tasks ends."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.utils._pytree import tree_map

from metasparse_ext._arguments import require, require_choice, require_flag, require_size
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.records import Metrics, Source
from metasparse_ext.algorithms.samples import named_inputs
from metasparse_ext.algorithms.task_networks import AdaptedTasks
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.implicit import Layout

Optimizer = Literal["adam", "sgd"]

# Of the inner Adam, as in the official code.
_DECAY, _EPSILON = 0.999, 1e-8


class Reptile(MetaLearner):
    """Trains on each task by minibatches, then theta <- theta + epsilon (mean phi - theta).

    ``.grad`` becomes theta - mean phi, so plain SGD whose rate is epsilon makes the step; the
    official code lets epsilon fall linearly from 1 to 0. There is no second derivative, and no
    query set: a training task is all of its images.

    The inner optimizer is Adam with beta1 = 0, whose average of squared gradients carries over from
    task to task. The official code visits the tasks of a meta-batch one after the other; here they
    run side by side from the same average, and the mean of theirs is kept. So the average advances
    by the steps of one task in a meta-batch, not by those of all of them, and Adam's correction of
    its first steps lasts as many times longer. With one task a meta-batch the two are the same.

    Args:
        model: A network from images to logits.
        inner_lr: Learning rate of the inner optimizer.
        inner_steps: Minibatches of a task in training.
        inner_batch: Images of a minibatch.
        adapt_steps, adapt_batch: The same of :meth:`adapt`; those of training by default.
        optimizer: "adam", or "sgd" for plain gradient steps.
        pooled: Train on support and query images together; else on the support set alone, and the
            query set only measures.

    Source: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018, and its
        public code.
    """

    source = Source(
        paper="Nichol, Achiam, Schulman, 2018",
        exact="the update, the inner Adam with beta1 = 0 that outlives its tasks, minibatches",
        reconstructed="the tasks of a meta-batch run side by side from the same moments, whose "
        "mean is kept, not one after the other: they advance once a meta-batch",
    )

    square: Tensor
    updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        inner_lr: float = 1e-3,
        inner_steps: int = 5,
        inner_batch: int = 10,
        adapt_steps: int | None = None,
        adapt_batch: int | None = None,
        optimizer: Optimizer = "adam",
        pooled: bool = True,
    ) -> None:
        super().__init__(model, inner_lr=inner_lr, inner_steps=inner_steps, adapt_steps=adapt_steps)
        adapt_batch = inner_batch if adapt_batch is None else adapt_batch
        require_size(self.name, "inner_batch", inner_batch)
        require_size(self.name, "adapt_batch", adapt_batch)
        require_flag(self.name, "pooled", pooled)
        require_choice(self.name, "optimizer", optimizer, Optimizer)
        self.inner_batch, self.adapt_batch = inner_batch, adapt_batch
        self.optimizer, self.pooled = optimizer, pooled
        if optimizer == "adam":
            self.tasks_together = "the moments of its Adam are means over all tasks"
        self.register_buffer("square", torch.zeros_like(self.start(1)[0]))
        self.register_buffer("updates", torch.zeros_like(self.iteration))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, inner_batch={self.inner_batch}, {self.optimizer}"

    def adapt(self, support: Samples) -> AdaptedTasks:
        # A seed that no iteration of training uses.
        order = torch.full_like(self.iteration, -1)
        phi, *_ = self._train(support, self.adapt_steps, self.adapt_batch, order)
        return self.adapted(phi)

    def meta_backward(self, batch: TaskBatch) -> Metrics:
        images = self._pooled(batch) if self.pooled else batch.support
        phi, square, trace = self._train(images, self.inner_steps, self.inner_batch, self.iteration)
        with torch.no_grad():
            logits = self.logits(phi, batch.query.images)
            trace.append(self.task_losses(logits, batch.query.labels))
        theta = self.start(phi.shape[0])
        metrics = self.finish(theta - phi, phi, trace, batch.query, logits)
        if self.optimizer == "adam":
            self.square.copy_(torch.where(self.nonfinite, self.square, square.mean(0)))
            self.updates += self.inner_steps * ~self.nonfinite
        return metrics

    def _lay_out_anew(self, layout: Layout) -> None:
        """The average squares of the parameters that are still adapted, and zeros for others."""
        zeros = {
            n: self.square.new_zeros(s) for n, s in zip(layout.names, layout.shapes, strict=True)
        }
        self.square = layout.flatten(zeros | self.layout.unflatten(self.square))

    def _pooled(self, batch: TaskBatch) -> Samples:
        """All images of each task."""
        support, query = batch.support, batch.query
        parts = [
            {**dict(named_inputs("images", images)), "labels": labels}
            for images, labels, _ in batch
        ]
        first, second = ({n: tuple(t.shape[2:]) for n, t in part.items()} for part in parts)
        wanted = f"samples of the shapes {first} like the support set, or pooled False"
        require(first == second, self.name, "batch.query", wanted, second)
        return support._replace(
            images=tree_map(lambda *parts: torch.cat(parts, 1), support.images, query.images),
            labels=torch.cat([support.labels, query.labels], 1),
        )

    def _train(
        self, samples: Samples, steps: int, size: int, seed: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Parameters and squares (T, P) after so many minibatches, and the losses (T,) of each."""
        tasks, count = samples.labels.shape[:2]
        phi, trace = self.start(tasks).clone(), []
        square, first = self.square.repeat(tasks, 1), torch.zeros_like(phi)
        updates = self.updates.float()
        # The tasks share an order: their images were drawn at random already.
        for chosen in minibatches(count, size, steps, seed):
            part = samples._replace(
                images=tree_map(lambda images: images[:, chosen], samples.images),  # noqa: B023
                labels=samples.labels[:, chosen],
            )
            loss, gradient, _ = self.gradient(phi, part)
            trace.append(loss)
            if self.optimizer == "adam":
                _adam_(phi, gradient, first, square, updates, self.inner_lr)
            else:
                phi.sub_(gradient, alpha=self.inner_lr)
        return phi, square, trace


def _adam_(
    phi: Tensor, gradient: Tensor, first: Tensor, square: Tensor, updates: Tensor, rate: float
) -> None:
    """A step of Adam with beta1 = 0, in place; the tasks' parameters (T, P) are one tensor to it.

    ``first`` is where it keeps the gradient itself, ``updates`` () float32 is its counter.
    """
    adam(
        [phi], [gradient.contiguous()], [first], [square], [], [updates],
        fused=True, amsgrad=False, beta1=0.0, beta2=_DECAY, lr=rate, weight_decay=0.0,
        eps=_EPSILON, maximize=False,
    )  # fmt: skip


def minibatches(count: int, size: int, steps: int, seed: Tensor) -> Tensor:
    """Cuts ``count`` samples, shuffled anew for every pass through them, into minibatches.

    A minibatch may begin at the end of one pass and end in the next.

    Args:
        count: How many samples there are.
        size: Samples in a minibatch.
        steps: How many minibatches.
        seed: () int64. The order depends on its value, which stays on the device.

    Returns:
        (steps, size) int64 indices, on the seed's device.
    """
    passes = -(-steps * size // count)
    positions = torch.arange(passes * count, device=seed.device)
    keys = _mixed(positions + seed * _signed(0x9E3779B97F4A7C15))
    order = keys.view(passes, count).argsort(-1)
    return order.flatten()[: steps * size].view(steps, size)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finalizer: integers that look random (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers: torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
