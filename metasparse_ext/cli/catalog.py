"""What there is: ``metasparse learners``, ``presets`` and ``info``."""

from __future__ import annotations

import inspect
import re

import click
from rich.table import Table

import metasparse_ext
from metasparse_ext.algorithms import LEARNERS, MetaLearner
from metasparse_ext.cli.messages import console, known, within
from metasparse_ext.cli.options import find_learner, learner_options
from metasparse_ext.presets import PRESETS

_MARKUP = re.compile(r"(?::\w+:)?`+~?(?:[\w.]+\.)?([^`]+)`+")


@click.command("learners")
@click.argument("name", required=False)
def learners(name: str | None) -> None:
    """List the learners, or say of one NAME what is exact, what reconstructed, and its options.

    NAME may also be a class of your own, package.module:Class.
    """
    shown_on = console()
    if name is not None:
        shown_on.print(_about(name, find_learner(name)))
        return
    shown = Table("learner", "what it is", "source", box=None, pad_edge=False)
    for each, kind in LEARNERS.items():
        shown.add_row(each, _summary(kind), kind.source.paper)
    shown_on.print(shown)


@click.command("presets")
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the published settings that --preset takes, or all of one NAME.

    The name of a learner, such as reptile, lists those of that learner.
    """
    listed = list(PRESETS) if name is None else within(name, PRESETS)
    if name is None or listed:
        click.echo("\n".join(listed))
        return
    preset = PRESETS[known("preset", name, PRESETS)]
    for key, value in preset.settings().items():
        shown = ", ".join(f"{k}={v}" for k, v in value.items()) if key == "options" else value
        click.echo(f"{key:12}{shown}")
    if preset.note:
        click.echo(f"{'note':12}{preset.note}")


@click.command("info")
def info() -> None:
    """Print versions and backends in use."""
    for name, value in metasparse_ext.info().items():
        click.echo(f"{name:15}{value}")


def _about(name: str, kind: type[MetaLearner]) -> Table:
    """A learner's source, and its options with their defaults."""
    source = kind.source
    options = ", ".join(f"{o}={p.default!r}" for o, p in learner_options(kind).items())
    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_row(name, _summary(kind))
    rows = {"source": source.paper, "exact": source.exact, "our own": source.reconstructed}
    for heading, text in rows.items():
        if text:
            shown.add_row(heading, text)
    shown.add_row("options", options)
    return shown


def _summary(kind: type[MetaLearner]) -> str:
    """The first line of a class's docstring, without its markup."""
    first, *_ = (inspect.getdoc(kind) or "").splitlines() or [""]
    return _MARKUP.sub(r"\1", first)
