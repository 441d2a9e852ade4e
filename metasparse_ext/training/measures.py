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
    sums = {name: total(value) for name, value in vars(found).items()}
    for number, name in enumerate(names):
        sums[f"accuracy/{name}"] = total(found.accuracy, where=distribution == number)
    return sums


def total(values: Tensor, where: Tensor | None = None) -> Tensor:
    """Sum and number of some values, float64 (2,); nothing is read on the host."""
    values = values.double()
    kept = torch.ones_like(values) if where is None else where.double()
    return torch.stack([(values * kept).sum(), kept.sum()])


def means(sums: dict[str, Tensor]) -> dict[str, float]:
    """The mean of every measure that has a value, by one look at the device."""
    totals, counts = torch.stack(list(sums.values())).unbind(1)
    found = dict(zip(sums, (totals / counts).tolist(), strict=True))
    return {name: value for name, value in found.items() if value == value}
