"""The command line: a file for each command, thin over :mod:`metasparse_ext.training`."""

from __future__ import annotations

import click

import metasparse_ext
from metasparse_ext.cli import demo, evaluate, export, info, learners, plot, presets, train
from metasparse_ext.cli.messages import OneLineErrors


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metasparse_ext.__version__, prog_name="metasparse")
def main() -> None:
    """Sparse meta-learning: train, evaluate and plot."""


for _module in (demo, evaluate, export, info, learners, plot, presets, train):
    main.add_command(_module.command)
