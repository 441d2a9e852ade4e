"""Commands on what runs learned: ``metasparse evaluate``, ``compare`` and ``plot``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import click

from metasparse_ext import _atomic as atomic
from metasparse_ext.cli.display import comparison_table, draw_figures, remark, table
from metasparse_ext.cli.messages import UserError, checked, console, folder, say
from metasparse_ext.training import Run, RunEvaluation, compare, metrics
from metasparse_ext.training.evaluation import by_kind, evaluate_best, require_alike
from metasparse_ext.training.kept import keep, to_json


def _setting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which tasks an evaluation is on."""
    for option in (
        click.option("--adapt-steps", type=click.IntRange(0), help="Steps of adaptation."),
        click.option(
            "--transductive/--no-transductive",
            default=None,
            help="Batch statistics over all queries of a task, or over the support set and one "
            "query.",
        ),
        click.option("--tasks", type=click.IntRange(1), help="How many tasks."),
        click.option(
            "--every-set",
            is_flag=True,
            default=None,
            help="One task of every set of --ways classes, instead of --tasks.",
        ),
        click.option("--queries", type=click.IntRange(1), help="Query images per class."),
        click.option("--shots", type=click.IntRange(1), help="Support images per class."),
        click.option("--ways", type=click.IntRange(2), help="Classes per task, at most the run's."),
        click.option("--data", help="Data set."),
        click.option(
            "--split",
            type=click.Choice(["train", "val", "test"]),
            default="test",
            show_default=True,
            help="Classes that the tasks are drawn from.",
        ),
    ):
        command = option(command)
    return command


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("evaluate")
@click.argument("runs", nargs=-1, required=True, callback=folder, metavar="RUN...")
@_setting
@click.option("--root", help="Folder of the data set's files, if it has moved.")
@click.option("--device", help="Torch device, if not the run's.")
@_as_json
def evaluate(
    runs: Sequence[Run], root: str | None, device: str | None, as_json: bool, **setting: Any
) -> None:
    """Evaluate the best checkpoint of every RUN on classes it has not seen.

    What is not said is as the run was trained. The run folder gets evaluation-SPLIT.json or, where
    something differs from the run's own setting, a file that is named after it too. --json prints
    what these files hold, one object a RUN, with the accuracy on each task.
    """
    checked(lambda: require_alike("evaluate", runs, **setting))
    evaluations: dict[str, RunEvaluation] = {}
    failure: OSError | None = None
    for run in runs:
        one = partial(evaluate_best, run, root=root, device=device, **setting)
        evaluation, numbers = checked(one)
        evaluations[str(run)] = evaluation
        try:
            keep(run, evaluation, numbers)
        except OSError as error:
            failure = failure or error
    if as_json:
        found = [{"run": label, **vars(each)} for label, each in evaluations.items()]
        click.echo(to_json(found))
    else:
        _show(evaluations)
    # Last: what was computed is on the screen even where it cannot be written.
    if failure is not None:
        raise failure


def _show(evaluations: Mapping[str, RunEvaluation]) -> None:
    shown_on = console()
    # That runs are judged differently, or bring their own tasks, shows only now.
    for lot in by_kind(evaluations):
        shown_on.print(table(lot))
    for label, evaluation in evaluations.items():
        say(shown_on, f"{f'{label}: ' if len(evaluations) > 1 else ''}{remark(evaluation)}")


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, callback=folder, metavar="RUN RUN...")
@_setting
@_as_json
def compare_runs(runs: Sequence[Run], as_json: bool, **setting: Any) -> None:
    """Compare evaluated RUNs with the first one, on the same tasks, by a paired t-test.

    Runs that differ in their seed alone are several trainings of one: their mean and spread are
    shown. The other options say which of the evaluations; by default the runs' own.
    """
    found = checked(lambda: compare(runs, **setting))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    console().print(comparison_table(found))


@click.command("plot")
@click.argument("runs", nargs=-1, required=True, callback=folder, metavar="RUN...")
@click.option("--out", callback=folder, help="Folder for the pictures; by default the first RUN.")
@click.option(
    "--against",
    type=click.Choice(["iteration", "elapsed"]),
    default="iteration",
    show_default=True,
    help="Draw learning curves against iterations, or processor seconds of training.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Write metrics.csv beside the pictures, too.")
@_setting
def plot(runs: Sequence[Run], out: Run | None, against: str, as_csv: bool, **setting: Any) -> None:
    """Draw learning curves and, of evaluated runs, accuracy against cost and kernels in use.

    metrics.csv of --csv has a line for each record of every RUN. The options from --split on say
    which of the evaluations; by default the runs' own.
    """
    for run in runs:
        run.config()
    labelled = {str(run): run for run in runs}
    into = (out or runs[0]).folder
    written = checked(lambda: draw_figures(labelled, into, against=against, **setting))
    if as_csv:
        records = {label: metrics.read(run.metrics_path) for label, run in labelled.items()}
        atomic.replace_text(into / "metrics.csv", metrics.to_csv(records))
        written.append(into / "metrics.csv")
    if not written:
        named = ", ".join(labelled)
        raise UserError(
            f"plot: {named}: no iteration was done and no evaluation kept: nothing to draw"
        )
    for path in written:
        click.echo(path)
