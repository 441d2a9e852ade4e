"""``metasparse plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from metasparse_ext.training import Run


@click.command("plot")
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", help="Folder for the pictures; by default the first RUN.")
@click.option(
    "--against",
    type=click.Choice(["iteration", "elapsed"]),
    default="iteration",
    show_default=True,
    help="Draw learning curves against iterations, or processor seconds of training.",
)
def command(runs: Sequence[str], out: str | None, against: str) -> None:
    """Draw learning curves and, of evaluated runs, accuracy against cost and kernels in use."""
    from metasparse_ext.training import figures

    folders = {name: Run(name) for name in runs}
    for folder in folders.values():
        folder.config()
    for picture in figures.draw(folders, Path(out or runs[0]), against=against):
        click.echo(picture)
