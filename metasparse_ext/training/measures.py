"""What a meta-step measured, as sums and counts that processes can share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metasparse_ext.algorithms.base import Metrics


def totals(
    found: Metrics, distribution: Tensor | None = None, names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Sum over the tasks and number of tasks, float64 (2,), of every measure.

    Args:
        found: A value per task.
        distribution: (T,) the data set of each task, where there are several.
        names: Their names; ``accuracy/NAME`` is the accuracy on the tasks of one of them.
    """
    sums = {name: _total(value) for name, value in vars(found).items()}
    for number, name in enumerate(names):
        sums[f"accuracy/{name}"] = _total(found.accuracy[distribution == number])
    return sums


def _total(values: Tensor) -> Tensor:
    values = values.double()
    return torch.stack([values.sum(), values.new_tensor(values.numel())])


def means(sums: dict[str, Tensor]) -> dict[str, float]:
    """The mean of every measure that has a value."""
    found = {name: float(total / count) for name, (total, count) in sums.items()}
    return {name: value for name, value in found.items() if value == value}
