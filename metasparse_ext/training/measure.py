"""What a run is judged by: its accuracy, a metric of one's own, or its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metasparse_ext import _entries
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.algorithms.records import Metrics
from metasparse_ext.algorithms.tasks import accuracy
from metasparse_ext.training.parts import LOSSES

# What records and evaluations hold under these names is something else.
TAKEN = {
    *("iteration", "kind", "measure", "active", "support_loss", "gradient_norm", "seconds"),
    *("elapsed", "interval", "tasks", "transductive", "kernels", "macs", "dense_macs", "usage"),
    *("distributions", "eligible", "skipped", "rate_factor", "stage", "density", "search_macs"),
    *("training_macs", "loss", "accuracy", "accuracies", "episodes", "unscored", "round"),
}


@dataclass(frozen=True)
class Measure:
    """What a run is judged by.

    Attributes:
        name: By which records, evaluations, tables and figures have it: "accuracy", or the name of
            the metric, or of the loss; where records have that name for something else,
            ``own_NAME``.
        is_loss: Whether it is the loss.
        less_is_better: Whether the best checkpoint is that of the least.
    """

    name: str = "accuracy"
    is_loss: bool = False
    less_is_better: bool = False

    def values(self, metrics: Metrics) -> Tensor:
        """(T,) of the tasks of a meta-step."""
        return metrics.loss if self.is_loss else metrics.accuracy

    def scored(self, values: Tensor) -> Tensor:
        """(T,) bool: which tasks count; a metric may have no value on a task, a loss must."""
        return torch.ones_like(values, dtype=torch.bool) if self.is_loss else values.isfinite()

    def better(self, new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
        """Whether the validation of a record is as good as that of an older one, or better."""
        new_value, old_value = new[self.name], old[self.name]
        return new_value <= old_value if self.less_is_better else new_value >= old_value

    def remark(self) -> dict[str, str]:
        """What a record says of it: nothing where it is the accuracy."""
        return {} if self == ACCURACY else {"measure": self.name}


ACCURACY = Measure()


def measure_of(learner: MetaLearner) -> Measure:
    """A learner's metric; its loss if it has a loss of its own and no metric; else accuracy.

    Of a loss, and of a metric that is one of our losses, less is better.
    """
    if learner.metric is accuracy:
        return ACCURACY
    if learner.metric is not None:
        name = _free(_entries.short_name(learner.metric, LOSSES, "metric"))
        return Measure(name, less_is_better=learner.metric in LOSSES.values())
    if learner.loss is not None:
        name = _free(_entries.short_name(learner.loss, LOSSES, "loss"))
        return Measure(name, is_loss=True, less_is_better=True)
    return ACCURACY


def _free(name: str) -> str:
    return f"own_{name}" if name in TAKEN else name
