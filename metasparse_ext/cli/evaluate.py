"""``metasparse evaluate``."""

from __future__ import annotations

from typing import Any

import click

from metasparse_ext.cli.messages import checked, console, say
from metasparse_ext.training import Run, results


@click.command("evaluate")
@click.argument("run")
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
def command(run: str, split: str, **options: Any) -> None:
    """Evaluate the best checkpoint of RUN on classes it has not seen."""
    folder = Run(run)
    result, found = checked(lambda: results.measure(folder, split=split, **options))
    shown_on = console()
    shown_on.print(results.table({run: result}))
    say(shown_on, results.remark(result))
    # Last: what was computed is on the screen even where it cannot be written.
    results.keep(folder, split, result, found)
