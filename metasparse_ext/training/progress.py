"""Training in plain text: a line once in a while, and one at every validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from metasparse_ext.training.config import RunConfig

_SMOOTHING = 0.95
_SECONDS_BETWEEN_LINES = 10.0


class Lines:
    """A line every ten seconds and at every validation.

    Args:
        show: What is done with a line; by default it is printed.
    """

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        self._show = _printed if show is None else show
        self._mean = Smoothed()

    def start(self, config: RunConfig, iteration: int) -> None:
        """Prints what begins."""
        asked = config.max_seconds
        length = f"{config.iterations} iterations" if asked is None else f"{asked:g} seconds"
        self._show(f"{config.learner}: training of {length}, from iteration {iteration}")
        self._begun: tuple[float, float] | None = None
        self._printed = time.monotonic()

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """Prints the means once in a while."""
        self._mean.add(record)
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, done
        if now - self._printed < _SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        began, before = self._begun
        left = (now - began) / max(done - before, 1e-9) * (1 - done)
        self._show(
            f"iteration {record['iteration']}, {done:.1%}  {self._mean.text()}  "
            f"{_duration(left)} left"
        )

    def validation(self, record: Mapping[str, Any], best: bool) -> None:
        """Prints the validation."""
        self._show(validation_text(record, best))


class Smoothed:
    """Exponential means of a training record's numbers, unbiased from the first one on."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._measure = "accuracy"

    def add(self, record: Mapping[str, Any]) -> None:
        self._measure = record.get("measure", "accuracy")
        for name in ("loss", self._measure, "active", "seconds"):
            if record.get(name) is not None:
                self._sums[name] = _SMOOTHING * self._sums.get(name, 0.0) + record[name]
                self._weights[name] = _SMOOTHING * self._weights.get(name, 0.0) + 1.0

    def __getitem__(self, name: str) -> float:
        return self._sums[name] / self._weights[name]

    def text(self) -> str:
        """The numbers as one line: loss, accuracy, active kernels, seconds per iteration.

        Of a run that is judged otherwise, that in place of the accuracy.
        """
        parts = [f"loss {self['loss']:.3f}"] if "loss" in self._sums else []
        if self._measure == "accuracy" and "accuracy" in self._sums:
            parts.append(f"accuracy {self['accuracy']:6.1%}")
        elif self._measure in self._sums:
            parts.append(f"{self._measure} {self[self._measure]:.4g}")
        if "active" in self._sums:
            parts.append(f"active {self['active']:6.1%}")
        return "  ".join([*parts, f"{self['seconds']:.3f} s/it"])


def score_text(record: Mapping[str, Any]) -> str:
    """What a record or an evaluation was judged by, with its interval: "97.13% ± 0.37%".

    Of another measure than accuracy, with its name: "mse 0.52 ± 0.04".
    """
    name = record.get("measure", "accuracy")
    value, interval = number_of(record[name]), number_of(record["interval"])
    if name == "accuracy":
        return f"{value:.2%} ± {interval:.2%}"
    return f"{name} {value:.4g} ± {interval:.2g}"


def validation_text(record: Mapping[str, Any], best: bool) -> str:
    """A validation record as one line."""
    kind = "transductive" if record["transductive"] else "non-transductive"
    mark = "  best" if best else "" if record["eligible"] else "  not eligible"
    measure = record.get("measure", "accuracy")
    shown = ".2%" if measure == "accuracy" else ".4g"
    parts = "".join(
        f", {name} {number_of(score[measure]):{shown}}"
        for name, score in record["distributions"].items()
    )
    return (
        f"iteration {record['iteration']}: validation {score_text(record)} "
        f"on {record['tasks']} tasks ({kind}){parts}, "
        f"active kernels {record['active']:.1%}{mark}"
    )


def number_of(number: float | None) -> float:
    """A number of JSON, which has null where there is no finite one."""
    return math.nan if number is None else number


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _printed(line: str) -> None:
    print(line, flush=True)
