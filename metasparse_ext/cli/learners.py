"""``metasparse learners``."""

from __future__ import annotations

import inspect
import re

import click
from rich.table import Table

from metasparse_ext.algorithms import LEARNERS, SOURCES
from metasparse_ext.cli.configure import learner_options
from metasparse_ext.cli.messages import console, known

_MARKUP = re.compile(r"(?::\w+:)?`+~?(?:[\w.]+\.)?([^`]+)`+")


@click.command("learners")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the learners, or say of one NAME what is exact, what reconstructed, and its options."""
    shown_on = console()
    if name is not None:
        shown_on.print(_about(known("learner", name, LEARNERS)))
        return
    shown = Table("learner", "what it is", "source", box=None, pad_edge=False)
    for each, kind in LEARNERS.items():
        shown.add_row(each, _summary(kind), SOURCES[each].paper)
    shown_on.print(shown)


def _about(name: str) -> Table:
    """A learner's source, and its options with their defaults."""
    kind, source = LEARNERS[name], SOURCES[name]
    options = ", ".join(f"{o}={p.default!r}" for o, p in learner_options(kind).items())
    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_row(name, _summary(kind))
    shown.add_row("source", source.paper)
    shown.add_row("exact", source.exact)
    if source.reconstructed:
        shown.add_row("our own", source.reconstructed)
    shown.add_row("options", options)
    return shown


def _summary(kind: type) -> str:
    """The first line of a class's docstring, without its markup."""
    return _MARKUP.sub(r"\1", inspect.getdoc(kind).splitlines()[0])
