"""What there is: ``metasparse learners``, ``presets`` and ``info``."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import click
import torch
from rich.table import Table

import metasparse_ext
from metasparse_ext.algorithms import LEARNERS, MetaLearner
from metasparse_ext.cli.messages import UserError, checked, console, known, within
from metasparse_ext.cli.options import find_learner, learner_options
from metasparse_ext.presets import PRESETS

DTYPES = ("float32", "float64", "float16", "bfloat16")

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
        click.echo(f"{key:18}{shown}")
    if preset.note:
        click.echo(f"{'note':18}{preset.note}")


def _sizes(letters: str) -> Callable[..., tuple[int, ...] | None]:
    """Reads whole numbers with commas between, one for each of the letters."""

    def read(
        context: click.Context, option: click.Parameter, text: str | None
    ) -> tuple[int, ...] | None:
        if text is None:
            return None
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != letters.count(",") + 1 or not all(map(_is_size, parts)):
            expected = f"{letters}, whole numbers from 1 to 2**31 - 1"
            raise click.BadParameter(f"expected {expected}, got {text!r}", context, option)
        return tuple(map(int, parts))

    return read


def _is_size(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 2**31


@click.command("info")
@click.option(
    "--shape",
    callback=_sizes("N,I,H,W"),
    metavar="N,I,H,W",
    help="Say which algorithm serves a convolution of such images, and why.",
)
@click.option(
    "--weight",
    callback=_sizes("O,kh,kw"),
    metavar="O,kh,kw",
    help="Its output channels and the size of its kernels.",
)
@click.option("--tasks", type=click.IntRange(1), help="Tasks, each with images and a weight.")
@click.option("--stride", type=click.IntRange(1), help="Step of the window.  [default: 1]")
@click.option("--padding", type=click.IntRange(0), help="Zeros around the image.  [default: 0]")
@click.option(
    "--density",
    type=click.FloatRange(0, 1),
    help="Fraction of the kernels that the mask leaves.  [default: 1]",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the operands.  [default: float32]")
def info(shape: tuple[int, ...] | None, weight: tuple[int, ...] | None, **options: Any) -> None:
    """Print versions and backends in use; of a convolution, which algorithm serves it, and why.

    A convolution is described by --shape and --weight, and by the options after these.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if shape is not None and weight is not None:
        click.echo(checked(lambda: _explanation(shape, weight, **given)))
        return
    if shape is not None or weight is not None or given:
        missing = [f"--{n}" for n, v in {"shape": shape, "weight": weight}.items() if v is None]
        raise UserError(f"info: a convolution needs {' and '.join(missing)} too")
    for name, value in metasparse_ext.info().items():
        click.echo(f"{name:15}{value}")


def _explanation(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    tasks: int | None = None,
    stride: int = 1,
    padding: int = 0,
    density: float = 1.0,
    dtype: str = "float32",
) -> str:
    """What :func:`metasparse_ext.explain` says of operands of these sizes, which take no memory."""
    out_channels, *kernel = weight
    in_channels = shape[1]
    lead = () if tasks is None else (tasks,)
    zero = torch.zeros((), dtype=getattr(torch, dtype))
    sizes = {"x": (*lead, *shape), "weight": (*lead, out_channels, in_channels, *kernel)}
    for name, size in sizes.items():
        if math.prod(size) >= 2**63:
            raise ValueError(f"info: no tensor has as many elements as {name} of {size}")
    mask = torch.zeros(out_channels * in_channels, dtype=zero.dtype)
    mask[: round(density * mask.numel())] = 1
    explained = metasparse_ext.explain(
        zero.expand(sizes["x"]),
        zero.expand(sizes["weight"]),
        mask.view(out_channels, in_channels),
        stride=stride,
        padding=padding,
    )
    return str(explained)


def _about(name: str, kind: type[MetaLearner]) -> Table:
    """A learner's source, and its options with their defaults."""
    source = kind.source
    options = ", ".join(
        f"{name} (required)" if option.default is option.empty else f"{name}={option.default!r}"
        for name, option in learner_options(kind).items()
    )
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
