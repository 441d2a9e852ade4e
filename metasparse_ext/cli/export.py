"""``metasparse export``."""

from __future__ import annotations

from pathlib import Path

import click

from metasparse_ext.training import Run, export_masks


@click.command("export")
@click.argument("run")
@click.option("--out", required=True, help="File to write, .npz.")
@click.option("--root", help="Folder of the data set's files, if it has moved.")
def command(run: str, out: str, root: str | None) -> None:
    """Write the masks of RUN's best checkpoint: zeros and ones by the name of the layer."""
    for name, mask in export_masks(Run(run), Path(out), root=root).items():
        click.echo(f"{name:24}{tuple(mask.shape)!s:20}{mask.mean():7.2%} active")
