"""Runs that are to be trained: one of them, and the table of how all of them ended."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from metasparse_ext.cli.display import reporter
from metasparse_ext.cli.messages import INTERRUPTED, UserError, checked, say
from metasparse_ext.training import Outcome, Reporter, Run, RunConfig, Trainer
from metasparse_ext.training.distributed import Workers, first_process
from metasparse_ext.training.progress import score_text
from metasparse_ext.training.reporters import SERVICES


@dataclass(frozen=True)
class Planned:
    """A run that is to be trained.

    Attributes:
        run: Its folder.
        config: What to train.
        label: What to call it in a table, by column.
        refused: Why it cannot be trained, if that is known before.
    """

    run: Run
    config: RunConfig
    label: Mapping[str, str]
    refused: str | None = None


def train_one(
    planned: Planned, workers: Workers, shown_on: Console, reports: Sequence[str]
) -> Outcome:
    """Trains a run, or goes on with it.

    Raises:
        SystemExit: If training was interrupted.
        Exception: What it failed with.
    """
    run = planned.run
    with reporter(shown_on) as shown:
        told = [shown, *_reporters(run, reports)]
        trainer = checked(lambda: Trainer(planned.config, run, reporter=told, workers=workers))
        if trainer.chunk is not None:
            say(shown_on, str(trainer.chunk))
        outcome = checked(trainer.fit)
    if outcome.interrupted:
        say(shown_on, f"stopped at iteration {outcome.iteration}, saved: --resume goes on")
        sys.exit(INTERRUPTED)
    say(shown_on, ending(run, outcome))
    return outcome


def _reporters(run: Run, names: Sequence[str]) -> list[Reporter]:
    """Those of these names; of processes that train together, the first has them."""
    try:
        return [SERVICES[name](run) for name in dict.fromkeys(names) if first_process()]
    except ImportError as error:
        raise UserError(str(error)) from error


def ending(run: Run, outcome: Outcome) -> str:
    """What came out of training, in a line."""
    best = outcome.best
    if best is None:
        return f"no checkpoint met the budget: {run} has its last one only"
    return (
        f"best: iteration {best['iteration']}, validation {score_text(best)}, "
        f"active kernels {best['active']:.1%}; saved in {run}"
    )


def summary(ended: Sequence[tuple[Planned, Outcome | str]]) -> Table:
    """All runs, the best first, then those without a best checkpoint, and those that failed.

    Those that are judged by something else are in a section of their own.
    """
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [(_rank(outcome), each, outcome) for each, outcome in ended]
    for column in rows[0][1].label:
        shown.add_column(column, overflow="fold")
    shown.add_column("validation", no_wrap=True)
    shown.add_column("iteration", justify="right", no_wrap=True)
    shown.add_column("run", overflow="fold")
    judged = list(dict.fromkeys(_judged_by(each, outcome) for _, each, outcome in rows))
    rows.sort(key=lambda row: (row[0][0], judged.index(_judged_by(*row[1:])), row[0]))
    before = None
    for _, each, outcome in rows:
        by = _judged_by(each, outcome)
        if before is not None and by is not None and by != before:
            shown.add_section()
        before = by
        best = None if isinstance(outcome, str) else outcome.best
        text = "failed" if isinstance(outcome, str) else "none met the budget"
        shown.add_row(
            *each.label.values(),
            text if best is None else score_text(best),
            "" if best is None else str(best["iteration"]),
            str(each.run),
        )
    _add_means(shown, [(each, outcome) for _, each, outcome in rows])
    return shown


def _add_means(shown: Table, rows: Sequence[tuple[Planned, Outcome | str]]) -> None:
    """Adds the mean over the seeds of every setting that was trained with them all."""
    settings: dict[tuple[str, ...], list[Outcome | str]] = {}
    for each, outcome in rows:
        if "seed" in each.label:
            values = tuple("mean" if name == "seed" else v for name, v in each.label.items())
            settings.setdefault(values, []).append(outcome)
    means = {
        values: _mean([o.best for o in outcomes if not isinstance(o, str) and o.best is not None])
        for values, outcomes in settings.items()
        if all(not isinstance(o, str) and o.best is not None for o in outcomes)
        and (len(outcomes) > 1 or len(settings) == 1)
    }
    if means:
        shown.add_section()
    for values, mean in means.items():
        shown.add_row(*values, mean)


def _judged_by(planned: Planned, outcome: Outcome | str) -> tuple[str | None, ...] | None:
    """What a run was judged by; None where it has no best checkpoint."""
    if isinstance(outcome, str) or outcome.best is None:
        return None
    config, name = planned.config, outcome.best.get("measure")
    return name, config.metric, config.loss if config.metric is None and name else None


def _mean(scores: Sequence[Mapping[str, Any]]) -> str:
    """The mean over runs of what they were judged by, and their standard deviation.

    That is of a sample (over n - 1), as `metasparse compare` has it.
    """
    name = scores[0].get("measure", "accuracy")
    values = [float(score[name]) for score in scores]
    percent = name == "accuracy"
    mean = statistics.fmean(values)
    text = f"{mean:.2%}" if percent else f"{name} {mean:.4g}"
    if len(values) == 1:
        return text
    spread = statistics.stdev(values)
    return f"{text}, standard deviation {f'{spread:.2%}' if percent else f'{spread:.2g}'}"


def _rank(outcome: Outcome | str) -> tuple[int, float]:
    """The better, the less."""
    if isinstance(outcome, str):
        return 2, 0.0
    if outcome.best is None:
        return 1, 0.0
    name = outcome.best.get("measure", "accuracy")
    value = float(outcome.best[name])
    return 0, value if outcome.less_is_better else -value
