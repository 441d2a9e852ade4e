"""The command line, thin over :mod:`metasparse_ext.training`."""

from __future__ import annotations

import os
import sys

import click

import metasparse_ext
from metasparse_ext.cli import catalog, data, demo, evaluations, out, train
from metasparse_ext.cli.messages import OneLineErrors


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metasparse_ext.__version__, prog_name="metasparse")
def main() -> None:
    """Sparse meta-learning: train, evaluate, compare, use and plot."""


for _command in (
    *(train.train, train.sweep, demo.demo),
    *(evaluations.evaluate, evaluations.compare_runs, evaluations.plot, out.predict, out.export),
    data.data,
    *(catalog.learners, catalog.presets, catalog.info),
):
    main.add_command(_command)


def program() -> None:
    """What the console script runs: the command line, in a process that keeps its memory.

    Modules are importable from the present folder, as under ``python -m``.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    if sys.platform == "linux":
        metasparse_ext.keep_memory()
    main(prog_name="metasparse")
