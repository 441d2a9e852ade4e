"""What is shown of runs: a progress bar, the table of evaluations, figures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from metasparse_ext.cli.messages import say
from metasparse_ext.training import (
    CheckpointError,
    Comparison,
    Reporter,
    Run,
    RunConfig,
    RunEvaluation,
    metrics,
)
from metasparse_ext.training.evaluation import require_one_task
from metasparse_ext.training.kept import find, require_present, usage
from metasparse_ext.training.progress import Lines, Smoothed, number_of, validation_text

logger = logging.getLogger("metasparse_ext")

# Fewer multiply-accumulates than these are shown as they are.
_SMALL = 10_000


class BarReporter:
    """A progress bar; validations scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._mean = Smoothed()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[iteration]}"),
            TextColumn("{task.fields[text]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, config: RunConfig, iteration: int) -> None:
        """Draws the bar."""
        self._task = self._progress.add_task(
            config.learner, total=1.0, iteration=iteration, text=""
        )

    def step(self, record: Mapping[str, Any], done: float) -> None:
        """Moves the bar."""
        self._mean.add(record)
        self._progress.update(
            self._task, completed=done, iteration=record["iteration"], text=self._mean.text()
        )

    def validation(self, record: Mapping[str, Any], best: bool) -> None:
        """Prints a line above the bar."""
        self._console.print(validation_text(record, best), highlight=False, markup=False)


def reporter(console: Console) -> AbstractContextManager[Reporter]:
    """The reporter that suits a console."""
    if console.is_terminal:
        return BarReporter(console)
    return nullcontext(Lines(partial(say, console)))


def table(evaluations: Mapping[str, RunEvaluation], *, timed: bool = True) -> Table:
    """A rich table, one row a run; the title says what was evaluated and how.

    Args:
        evaluations: By the label of the run.
        timed: Whether to show the seconds that an iteration of training took.

    Raises:
        ValueError: If the evaluations are on tasks of several kinds.
    """
    require_one_task("table", evaluations)
    first = next(iter(evaluations.values()))
    shown = Table(
        title=f"{first.setting}, {_manner(first.numbers)}",
        caption=f"{first.measure} with its 95 % interval; MACs: multiply-accumulates of one input",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("", overflow="fold")
    headings = (first.measure, "active kernels", "MACs", "s/iteration")[: 4 if timed else 3]
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    most = max(each.numbers["macs"] for each in evaluations.values())
    for label, each in evaluations.items():
        shown.add_row(label, *_cells(each, few=most < _SMALL)[: len(headings)])
    return shown


def comparison_table(found: Comparison) -> Table:
    """A rich table, one row a contender, each with its difference to the first."""
    first, measure = found.contenders[0], found.evaluation.measure
    shown = Table(
        title=f"{found.evaluation.setting}, {_manner(found.evaluation.numbers)}",
        caption=f"{measure} with its 95 % interval, or of several trainings ± their standard "
        f"deviation; difference to {first.label} on the same tasks with its 95 % interval",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("", overflow="fold")
    for heading in ("trainings", measure, "difference", "p"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for each in found.contenders:
        around = each.interval if each.spread is None else each.spread
        cells = ("", "")
        if each.difference is not None:
            difference = _number(each.difference.mean, each.difference.interval, measure, "+")
            cells = difference, f"{each.difference.p:.2g}"
        score = _number(each.score, around or 0, measure)
        shown.add_row(each.label, str(len(each.runs)), score, *cells)
    return shown


def remark(evaluation: RunEvaluation) -> str:
    """Which checkpoint was evaluated, how it keeps its budget, and its parts, in one sentence."""
    text = f"{evaluation.checkpoint} checkpoint, iteration {evaluation.iteration}"
    if evaluation.adapt_steps:
        text += f", {evaluation.adapt_steps} steps of adaptation"
    for name, score in evaluation.numbers.get("distributions", {}).items():
        text += f"; on {name} {_score(score, evaluation.measure)}"
    unscored = evaluation.numbers.get("unscored")
    if unscored:
        text += f"; {evaluation.measure} has no finite value on {unscored} tasks"
    if evaluation.budget is None:
        return text
    achieved = (
        f"{100 * evaluation.numbers['active']:.1f} % of {evaluation.numbers['kernels']:,} kernels"
    )
    return f"{text}; budget {100 * evaluation.budget:g} %, achieved {achieved}"


def _manner(numbers: Mapping[str, Any]) -> str:
    kind = "transductive" if numbers["transductive"] else "not transductive"
    return f"{numbers['tasks']} tasks, {kind}"


def _cells(evaluation: RunEvaluation, *, few: bool) -> tuple[str, str, str, str]:
    """A row; ``few``: whether every row has so few multiply-accumulates that they are whole."""
    numbers = evaluation.numbers
    macs = numbers["macs"]
    return (
        _score(numbers, evaluation.measure),
        f"{100 * numbers['active']:.1f} %" if numbers["kernels"] else "–",
        f"{macs:,.0f}" if few else f"{macs / 1e6:.2f} M",
        "" if evaluation.seconds is None else f"{evaluation.seconds:.3f}",
    )


def _score(score: Mapping[str, Any], measure: str) -> str:
    return _number(number_of(score[measure]), number_of(score["interval"]), measure)


def _number(value: float, around: float, measure: str, sign: str = "") -> str:
    if measure != "accuracy":
        return f"{value:{sign}.4g} ± {around:.2g}"
    return f"{100 * value:{sign}.2f} ± {100 * around:.2f} %"


def draw_figures(
    runs: Mapping[str, Run], folder: Path, *, against: str = "iteration", **setting: Any
) -> list[Path]:
    """Draws what runs have: learning curves and, of evaluated ones, accuracy and kernels in use.

    Args:
        runs: The runs by the label they get.
        folder: Where the pictures go.
        against: Abscissa of the learning curves, "iteration" or "elapsed".
        setting: Which evaluations to show, as :func:`~metasparse_ext.training.evaluate_run` takes
            it; by default the runs' own on test classes.

    Returns:
        The pictures written.

    An evaluation of another checkpoint than the run's best one is now is left out, with a warning.

    Raises:
        ValueError: If those evaluations are on tasks of several kinds.
    """
    from metasparse_ext import plots  # matplotlib takes a second to import

    evaluations = {label: find(run, **setting) for label, run in runs.items()}
    evaluated = {label: each for label, each in evaluations.items() if each is not None}
    for label, each in tuple(evaluated.items()):
        try:
            require_present(runs[label], each, "`metasparse evaluate` makes another")
        except CheckpointError as error:
            logger.warning("%s; it is left out", error)
            del evaluated[label]
    if evaluated:
        require_one_task("plot", evaluated)
    drawn = []
    records = {label: metrics.read(run.metrics_path) for label, run in runs.items()}
    if any(records.values()):
        drawn.append(folder / "learning-curves.png")
        plots.learning_curves(records, drawn[-1], against=against, title="Meta-training")
    if any(math.isfinite(each.score) for each in evaluated.values()):
        drawn.append(folder / "accuracy-macs.png")
        points = [
            plots.Point(
                label, each.numbers["macs"], each.score, each.numbers["interval"], each.measure
            )
            for label, each in evaluated.items()
            if math.isfinite(each.score)
        ]
        first = next(iter(evaluated.values()))
        plots.accuracy_against_macs(points, drawn[-1], title=first.setting)
    for label, each in evaluated.items():
        layers = usage(runs[label], each.name)
        if layers and each.numbers["active"] < 1:
            drawn.append(folder / f"kernels-{label.replace('/', '-')}.png")
            title = f"Kernels in use over {each.numbers['tasks']} tasks: {each.setting}"
            plots.kernel_usage(layers, drawn[-1], title=title)
    return drawn
