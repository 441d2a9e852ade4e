"""How well a learner does: accuracy on many tasks, its interval, and the size of the networks."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metasparse_ext._arguments import (
    LARGEST,
    refuse,
    require,
    require_count,
    require_flag,
    require_number,
    require_size,
    require_tensor,
    require_text,
    require_type,
    shown,
)
from metasparse_ext._records import check_fields
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.samples import check_one_dtype, named_inputs
from metasparse_ext.algorithms.task_networks import AdaptedTasks, cross_entropy
from metasparse_ext.algorithms.tasks import chunks
from metasparse_ext.data import Inputs, Samples, TaskBatch
from metasparse_ext.data.batch import input_dtype, input_shape
from metasparse_ext.nn import cost
from metasparse_ext.nn.evaluating import evaluating
from metasparse_ext.training.measure import measure_of

_FOLDED_TASKS = 64
# One pixel in so many, each way, goes into the digest of the tasks.
_EVERY = 3

# What numbers of earlier versions lack.
LATER: dict[str, Any] = {"distributions": {}, "accuracies": [], "episodes": "", "unscored": 0}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        tasks: How many tasks.
        accuracy: Mean query accuracy, in [0, 1]; or of what takes its place, the ``measure`` of a
            learner with a metric or a loss of its own. NaN (null in JSON) where no
            task has a value.
        interval: Half the 95 % confidence interval of that mean, 1.96 std / sqrt(tasks).
        loss: Mean query cross-entropy, or that of the learner's own loss.
        transductive: Whether batch statistics were taken over the whole query set.
        active: Fraction of the network's kernels in use, mean over the tasks.
        kernels: Number of kernels of the network.
        macs, dense_macs: Multiply-accumulates per image: those of active kernels (mean over the
            tasks), and of the same network without masks.
        distributions: Of a mixture of data sets, by name: the tasks drawn from it, and accuracy and
            interval on them.
        accuracies: The accuracy, or what takes its place, on each task, in their order; NaN (null
            in JSON) where a metric has no finite value.
        episodes: A digest of the images and labels of all tasks: the same where the tasks are.
        usage: For every masked layer, the fraction of tasks (O, I) in which a kernel is in use.
        measure: What ``accuracy`` and ``interval`` are of; the key of the former in JSON.
        unscored: Tasks on which a metric has no finite value, which ``accuracy`` and ``interval``
            leave out; not in JSON where there are none.
    """

    tasks: int
    accuracy: float
    interval: float
    loss: float
    transductive: bool
    active: float
    kernels: int
    macs: float
    dense_macs: int
    distributions: dict[str, dict[str, float]]
    accuracies: list[float] = dataclasses.field(repr=False)
    episodes: str
    usage: dict[str, Tensor] = dataclasses.field(repr=False)
    measure: str = "accuracy"
    unscored: int = 0

    def __post_init__(self) -> None:
        anything = {key: {"finite": False} for key in ("accuracy", "interval", "loss")}
        limits = {**anything, "measure": {"empty": False}}
        check_fields(self, limits, integers={"least": 0})
        for value in self.accuracies if self.measure == "accuracy" else ():
            require_number("Evaluation", "each of accuracies", value, least=0, most=1)

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as JSON values, without the kernel usage."""
        numbers = {key: value for key, value in vars(self).items() if key != "usage"}
        for key in ("accuracy", "interval", "accuracies", "distributions"):
            numbers[key] = _json(numbers[key])
        if not self.unscored:
            del numbers["unscored"]
        if numbers["measure"] == "accuracy":
            del numbers["measure"]
            return numbers
        return {self.measure if key == "accuracy" else key: v for key, v in numbers.items()}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> Evaluation:
        """What :meth:`to_dict` returned, with no kernel usage.

        Raises:
            TypeError, ValueError: If a number is missing, unknown or out of range.
        """
        measure = numbers.get("measure", "accuracy")
        named: dict[str, Any] = {
            "accuracy" if key == measure else key: value for key, value in numbers.items()
        }
        for key in ("accuracy", "interval"):
            named[key] = math.nan if named.get(key, 0) is None else named[key]
        accuracies = named.get("accuracies", [])
        if isinstance(accuracies, list):
            named["accuracies"] = [math.nan if value is None else value for value in accuracies]
        fields: dict[str, Any] = {**LATER, **named, "usage": {}}
        return cls(**fields)

    def summary(self) -> dict[str, Any]:
        """Returns those of them that are of all tasks together."""
        each = ("accuracies", "episodes")
        return {key: value for key, value in self.to_dict().items() if key not in each}


def evaluate(
    learner: MetaLearner,
    batches: Iterable[TaskBatch],
    *,
    tasks: int = 600,
    transductive: bool = True,
    distributions: Sequence[str] = (),
    ways: int | None = None,
) -> Evaluation:
    """Adapts to the support set of every task and classifies its query set.

    Args:
        learner: The meta-learner, in evaluation mode meanwhile; its state is left as it is.
        batches: Meta-batches; as many are drawn as ``tasks`` takes.
        tasks: How many tasks.
        transductive: Take batch statistics over the whole query set of a task, as the published
            codes do. Otherwise each query image is classified in a batch of the task's support
            images and itself alone.
        distributions: The names of the data sets of a mixture, to have the accuracy on each.
        ways: How many classes the tasks have, if fewer than the network has outputs: the other
            logits are left out.

    Returns:
        The evaluation. The standard deviation is that of the population, as in the sources.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If there are fewer than ``tasks`` tasks, or one is of a distribution without a
            name.
    """
    require_type("evaluate", "learner", learner, MetaLearner, "a MetaLearner")
    require_size("evaluate", "tasks", tasks)
    require_flag("evaluate", "transductive", transductive)
    require_type("evaluate", "distributions", distributions, (tuple, list), "names")
    for name in distributions:
        require_text("evaluate", "each of distributions", name, empty=False)
    if ways is not None:
        require_count("evaluate", "ways", ways, least=2, most=LARGEST)
    device = next(learner.parameters()).device
    totals = _Totals(learner)
    with evaluating(learner):
        for batch in _first_tasks(batches, tasks):
            totals.note(batch)
            for support, query in chunks(batch.to(device), learner.task_chunk):
                adapted = learner.adapt(support)
                with torch.no_grad():
                    logits = predict(adapted, support, query.images, transductive=transductive)
                    # Of what only a loss of one's own takes, all.
                    shown = logits[..., :ways] if isinstance(logits, Tensor) else logits
                    totals.add(shown, query, adapted)
    return totals.evaluation(transductive, distributions)


def predict(
    adapted: AdaptedTasks, support: Samples, images: Inputs, *, transductive: bool = True
) -> Tensor:
    """Classifies query images (T, Q, C, H, W) with T adapted networks; returns logits (T, Q, ways).

    Of a network that takes several inputs, ``images`` is a tuple or a dict of them.

    Not transductive: the queries are folded into the task axis, so that each has a batch (and batch
    statistics) made of the task's support images and itself.

    Raises:
        TypeError: If an argument has another type, or the images another dtype than the support's.
        ValueError: If images or support set are not those of as many tasks as were adapted to.
    """
    require_type("predict", "adapted", adapted, AdaptedTasks, "AdaptedTasks")
    require_type("predict", "support", support, Samples, "Samples of images and labels")
    require_flag("predict", "transductive", transductive)
    queries = _check_inputs(adapted, "images", images)
    _check_inputs(adapted, "support.images", support.images)
    names, of_support = (
        {name for name, _ in named_inputs("", inputs)} for inputs in (images, support.images)
    )
    require(names == of_support, "predict", "images", "inputs like support.images", images)
    check_one_dtype("predict", "images", images, "support.images", support.images)
    if transductive:
        return adapted(images)
    chunk = max(1, _FOLDED_TASKS // adapted.tasks)
    parts = [slice(start, start + chunk) for start in range(0, queries, chunk)]
    found = [
        _beside_support(adapted, support.images, tree_map(lambda each: each[:, part], images))  # noqa: B023
        for part in parts
    ]
    return tree_map(lambda *each: torch.cat(each, 1), *found)


def _check_inputs(adapted: AdaptedTasks, name: str, images: Inputs) -> int:
    """Refuses inputs that are not those of the adapted tasks; returns how many a task has."""
    inputs = named_inputs(name, images)
    require(bool(inputs), "predict", name, "at least one tensor", images)
    one = isinstance(images, Tensor)
    for input_name, got in inputs:
        require_tensor("predict", input_name, got)
        wanted = f"(T, N, ...) with T = {adapted.tasks} like the adapted tasks"
        fits = got.dim() > (2 if one else 1) and len(got) == adapted.tasks
        require(fits, "predict", input_name, wanted, tuple(got.shape))
        count, first = got.shape[1], inputs[0][1].shape[1]
        require(count == first, "predict", input_name, f"N = {first} like the first", count)
    return inputs[0][1].shape[1]


def _beside_support(adapted: AdaptedTasks, support: Inputs, images: Inputs) -> Tensor:
    def joined(support: Tensor, images: Tensor) -> Tensor:
        queries = images.shape[1]
        repeated = support.unsqueeze(1).expand(-1, queries, *support.shape[1:])
        return torch.cat([repeated, images.unsqueeze(2)], dim=2).flatten(0, 1)

    _, first = named_inputs("images", images)[0]
    queries = first.shape[1]
    each = copy.copy(adapted)
    each.parameters = {n: p.repeat_interleave(queries, 0) for n, p in adapted.parameters.items()}
    found = each(tree_map(joined, support, images))
    return tree_map(lambda part: part[:, -1].unflatten(0, (-1, queries)), found)


class _Totals:
    """What is gathered over the tasks; it stays on the learner's device until the end."""

    def __init__(self, learner: MetaLearner) -> None:
        self._learner, self._measure = learner, measure_of(learner)
        self._accuracy: list[Tensor] = []
        self._distribution: list[Tensor] = []
        self._loss: list[Tensor] = []
        self._active: list[Tensor] = []
        self._macs: list[Tensor] = []
        self._used: dict[str, Tensor] = {}
        self._kernels, self._dense_macs = 0, 0
        self._episodes = hashlib.sha256()

    def note(self, batch: TaskBatch) -> None:
        """Adds tasks to the digest, one after the other: batches of another size make the same."""
        shown = [
            each[..., ::_EVERY, ::_EVERY] if each.dim() == 5 else each
            for samples in batch
            for _, each in sorted(named_inputs("", samples.images), key=lambda named: named[0])
        ]
        for values in zip(*shown, *(samples.labels for samples in batch), strict=True):
            for each in values:
                # Strides of axes of one pixel may be any: a copy has those that a view asks for.
                whole = each.detach().cpu().clone(memory_format=torch.contiguous_format)
                self._episodes.update(whole.view(torch.uint8).numpy())

    def add(self, logits: Tensor, query: Samples, adapted: AdaptedTasks) -> None:
        """Adds T tasks: logits (T, Q, ways) of the query sets by the adapted networks."""
        learner, labels, tasks = self._learner, query.labels, len(query.labels)
        own = learner.loss is not None
        losses = learner.task_losses(logits, labels) if own else cross_entropy(logits, labels)
        if self._measure.is_loss:
            scores = losses
        elif learner.metric is not None:
            scores = learner.task_scores(logits, labels)
        else:
            scores = (logits.argmax(-1) == labels).double().mean(1)
        self._accuracy.append(scores.double())
        self._loss.append(losses.double())
        self._active.append(adapted.active().double())
        masks = adapted.masks()
        for name, mask in masks.items():
            kernels = mask if mask.dim() == 3 else mask.flatten(-2).amax(-1)
            used = kernels.ne(0).sum(0)
            self._used[name] = self._used[name] + used if name in self._used else used
        if query.distribution is not None:
            self._distribution.append(query.distribution)
        shape, dtype = input_shape(query.images), input_dtype(query.images)
        found = cost(learner.model, shape, masks, dtype=dtype)
        self._macs.append(torch.as_tensor(found.active_macs).double().expand(tasks))
        self._kernels, self._dense_macs = found.kernels, found.macs

    def evaluation(self, transductive: bool, distributions: Sequence[str]) -> Evaluation:
        """The means over all tasks added."""
        accuracy = torch.cat(self._accuracy)
        tasks = len(accuracy)
        scored = self._measure.scored(accuracy)
        return Evaluation(
            **_score(accuracy, scored),
            loss=float(torch.cat(self._loss).mean()),
            transductive=transductive,
            active=float(torch.cat(self._active).mean()),
            kernels=self._kernels,
            macs=float(torch.cat(self._macs).mean()),
            dense_macs=self._dense_macs,
            distributions=self._by_distribution(accuracy, distributions),
            accuracies=accuracy.tolist(),
            episodes=self._episodes.hexdigest(),
            usage={name: (used.double() / tasks).cpu() for name, used in self._used.items()},
            measure=self._measure.name,
            unscored=tasks - int(scored.sum()),
        )

    def _by_distribution(
        self, accuracy: Tensor, names: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """The score on each data set of which there were tasks."""
        if not names:
            return {}
        which = torch.cat(self._distribution) if self._distribution else accuracy.new_empty(0)
        given = len(which) == len(accuracy) and bool(((which >= 0) & (which < len(names))).all())
        wanted = "the names of the distributions that the tasks have"
        require(given, "evaluate", "distributions", wanted, tuple(names))
        scores = {name: accuracy[which == number] for number, name in enumerate(names)}
        named = self._measure.name
        return {
            name: _score(found, self._measure.scored(found), named)
            for name, found in scores.items()
            if len(found)
        }


def _score(accuracy: Tensor, scored: Tensor, name: str = "accuracy") -> dict[str, Any]:
    """How many tasks (T,), the mean accuracy by its name of those that count, and its interval."""
    tasks, accuracy = len(accuracy), accuracy[scored]
    if not len(accuracy):
        return {"tasks": tasks, name: math.nan, "interval": math.nan}
    interval = 1.96 * float(accuracy.std(correction=0)) / math.sqrt(len(accuracy))
    return {"tasks": tasks, name: float(accuracy.mean()), "interval": interval}


def _json(value: Any) -> Any:
    """The same with None in the place of numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_tasks(batches: Iterable[TaskBatch], tasks: int) -> Iterator[TaskBatch]:
    """Meta-batches with ``tasks`` tasks in all; the last one may be cut."""
    left = tasks
    try:
        drawn = iter(batches)
    except TypeError:
        refuse(
            "evaluate", "batches", "meta-batches, one after the other", shown(batches), TypeError
        )
    for batch in drawn:
        require_type("evaluate", "each of batches", batch, TaskBatch, "a TaskBatch")
        part = batch.tasks(slice(left))
        yield part
        left -= part.support.labels.shape[0]
        if left == 0:
            return
    refuse("evaluate", "batches", f"those of {tasks} tasks", f"{tasks - left}")
