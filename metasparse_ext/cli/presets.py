"""``metasparse presets``."""

from __future__ import annotations

import click

from metasparse_ext.algorithms import PRESETS
from metasparse_ext.cli.messages import known, within


@click.command("presets")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the published settings that --preset takes, or all of one NAME.

    The name of a learner, such as reptile, lists those of that learner.
    """
    listed = PRESETS if name is None else within(name, PRESETS)
    if listed:
        click.echo("\n".join(listed))
        return
    preset = PRESETS[known("preset", name, PRESETS)]
    for key, value in preset.settings().items():
        shown = ", ".join(f"{k}={v}" for k, v in value.items()) if key == "options" else value
        click.echo(f"{key:12}{shown}")
    if preset.note:
        click.echo(f"{'note':12}{preset.note}")
