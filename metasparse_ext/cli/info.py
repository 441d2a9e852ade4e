"""``metasparse info``."""

from __future__ import annotations

import click

import metasparse_ext


@click.command("info")
def command() -> None:
    """Print versions and backends in use."""
    for name, value in metasparse_ext.info().items():
        click.echo(f"{name:15}{value}")
