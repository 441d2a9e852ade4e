"""What is done with finished runs: ``metasparse evaluate``, ``export`` and ``plot``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from metasparse_ext.cli.display import draw_figures, remark, table
from metasparse_ext.cli.messages import checked, console, folder, say
from metasparse_ext.training import Run, export_masks
from metasparse_ext.training.evaluation import evaluate_best, keep


@click.command("evaluate")
@click.argument("run", callback=folder)
@click.option("--tasks", type=click.IntRange(1), help="How many tasks; by default the run's (600).")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Classes that the tasks are drawn from.",
)
@click.option(
    "--transductive/--no-transductive",
    default=None,
    help="Batch statistics over all queries of a task, or over the support set and one "
    "query; by default the run's.",
)
@click.option(
    "--adapt-steps", type=click.IntRange(0), help="Steps of adaptation, if not the run's."
)
@click.option("--root", help="Folder of the data set's files, if it has moved.")
@click.option("--device", help="Torch device, if not the run's.")
def evaluate(run: Run, split: str, **options: Any) -> None:
    """Evaluate the best checkpoint of RUN on classes it has not seen."""
    evaluation, found = checked(lambda: evaluate_best(run, split=split, **options))
    shown_on = console()
    shown_on.print(table({str(run): evaluation}))
    say(shown_on, remark(evaluation))
    # Last: what was computed is on the screen even where it cannot be written.
    keep(run, split, evaluation, found)


@click.command("export")
@click.argument("run", callback=folder)
@click.option("--out", required=True, help="File to write, .npz.")
@click.option("--root", help="Folder of the data set's files, if it has moved.")
def export(run: Run, out: str, root: str | None) -> None:
    """Write the masks of RUN's best checkpoint: zeros and ones by the name of the layer."""
    masks = checked(lambda: export_masks(run, out, root=root))
    for name, mask in masks.items():
        click.echo(f"{name:24}{tuple(mask.shape)!s:20}{mask.mean():7.2%} active")


@click.command("plot")
@click.argument("runs", nargs=-1, required=True, callback=folder)
@click.option("--out", callback=folder, help="Folder for the pictures; by default the first RUN.")
@click.option(
    "--against",
    type=click.Choice(["iteration", "elapsed"]),
    default="iteration",
    show_default=True,
    help="Draw learning curves against iterations, or processor seconds of training.",
)
def plot(runs: Sequence[Run], out: Run | None, against: str) -> None:
    """Draw learning curves and, of evaluated runs, accuracy against cost and kernels in use."""
    for run in runs:
        run.config()
    labelled = {str(run): run for run in runs}
    for picture in draw_figures(labelled, (out or runs[0]).folder, against=against):
        click.echo(picture)
