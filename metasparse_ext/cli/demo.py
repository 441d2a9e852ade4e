"""``metasparse demo``."""

from __future__ import annotations

from pathlib import Path

import click

from metasparse_ext.cli.messages import console


@click.command("demo")
@click.option("--out", default="runs/demo", show_default=True, help="Folder to write.")
def command(out: str) -> None:
    """Train dense, prune half, and compare, on drawn characters: a few minutes."""
    from metasparse_ext.training.demo import demo

    demo(Path(out), console())
