"""How many tasks at a time fit into a budget of memory, by measuring meta-gradients of few."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from metasparse_ext._arguments import refuse, require_text
from metasparse_ext._memory import give_back
from metasparse_ext._records import check_fields
from metasparse_ext.algorithms.base import MetaLearner
from metasparse_ext.data import TaskBatch

_POWERS = dict(enumerate("KMGT", 1))
_UNITS = {
    **{"": 1, "B": 1},
    **{f"{letter}IB": 1024**power for power, letter in _POWERS.items()},
    **{f"{letter}B": 1000**power for power, letter in _POWERS.items()},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([A-Za-z]*)")
_PROC = Path("/proc/self")
# What falls between blocks where a heap or a cache is used again and again: up to a seventh.
_SLACK = 1.15


def budget_of(owner: str, name: str, text: str) -> int:
    """The bytes that a text such as "2GiB", "500 MB" or "1000000" says.

    Raises:
        TypeError, ValueError: If it says none, naming owner and argument.
    """
    require_text(owner, name, text)
    found = _SIZE.fullmatch(text.strip())
    unit = None if found is None else _UNITS.get(found[2].upper())
    size = 0 if found is None or unit is None else int(float(found[1]) * unit)
    if size < 1:
        refuse(owner, name, "a size such as 2GiB or 500MB", repr(text))
    return size


@dataclass(frozen=True)
class Chunk:
    """How many tasks are computed at a time, and why.

    Attributes:
        budget: As it was asked for, such as "2GiB".
        tasks: How many at a time.
        of: How many there are.
        one: Peak bytes with one task at a time: on the CPU of the process, on a GPU of torch.
        more: Bytes that each task more takes; 0 where there is one task only.
    """

    budget: str
    tasks: int
    of: int
    one: int
    more: int

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        peak = self.one + (self.tasks - 1) * self.more
        return (
            f"memory {self.budget}: {self.tasks} of {self.of} tasks at a time, about "
            f"{_shown(peak)} ({_shown(self.one)} with one, {_shown(self.more)} each more)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return asdict(self)

    @classmethod
    def of_peaks(cls, budget: str, tasks: int, one: int, two: int | None) -> Self:
        """The most of so many tasks that fit, if each takes what the second one took, and slack.

        Raises:
            ValueError: If not even one task does.
        """
        limit, more = budget_of("RunConfig", "memory", budget), max(0, (two or one) - one)
        if one > limit:
            refuse("RunConfig", "memory", f"at least {_shown(one)}, for one task", repr(budget))
        fits = tasks if more == 0 else min(tasks, 1 + int((limit - one) / (_SLACK * more)))
        return cls(budget, fits, tasks, one, more)


def check_chunks(learner: MetaLearner, budget: str) -> None:
    """Refuses a learner whose tasks come together, or in chunks that were asked for.

    Raises:
        ValueError: Saying which.
    """
    if learner.tasks_together:
        wanted = f"None for {learner.name}: {learner.tasks_together}"
        refuse("RunConfig", "memory", wanted, repr(budget))
    if learner.task_chunk is not None:
        got = f"{budget!r} and {learner.task_chunk}"
        refuse("RunConfig", "memory and the learner's task_chunk", "one of them at most", got)


def chunk_of(learner: MetaLearner, batch: TaskBatch, budget: str) -> Chunk:
    """Measures the meta-gradients of one task and of two; changes nothing.

    A copy of the learner computes them, and torch's random numbers are put back.

    Args:
        learner: What is trained.
        batch: A meta-batch of its training, on its device.
        budget: As :func:`budget_of` takes it.

    Raises:
        ValueError: If one task does not fit, or its memory cannot be measured here.
    """
    tasks = len(batch.support.labels)
    device = batch.support.labels.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # The first one makes what stays: threads, plans, the gradients of the copy.
        tried = copy.deepcopy(learner)
        _try(tried, batch.tasks(slice(1)))
        # One again after two: what earlier work kept for itself, and gives back meanwhile, would
        # be in the first peak alone, and two tasks would seem to take no more than one.
        peaks = [
            _peak(lambda: _try(tried, batch.tasks(slice(count))), device)  # noqa: B023
            for count in ((1, 2, 1) if tasks > 1 else (1,))
        ]
    one = min(peaks[0], peaks[-1])
    return Chunk.of_peaks(budget, tasks, one, peaks[1] if tasks > 1 else None)


def _try(learner: MetaLearner, batch: TaskBatch) -> None:
    # One that is not finite has been computed, too; the training will say so.
    with suppress(FloatingPointError):
        learner.meta_backward(batch)


def _peak(work: Callable[[], None], device: torch.device) -> int:
    """The most bytes in use meanwhile: of torch's tensors on a GPU, else of the process."""
    gc.collect()  # garbage of earlier code would count in the first peak and not in the second
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    give_back()
    try:
        (_PROC / "clear_refs").write_text("5")  # the peak starts again from what is resident
        work()
        status = (_PROC / "status").read_text()
    except OSError as error:
        wanted = "None where the system does not tell a process its peak (Linux does)"
        raise ValueError(f"RunConfig: expected memory to be {wanted}: {error}") from error
    (peak,) = re.findall(r"VmHWM:\s*(\d+)", status)
    return 1024 * int(peak)


def _shown(size: int) -> str:
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"
