"""What leaves a run: ``metasparse predict`` and ``metasparse export``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from metasparse_ext._arguments import require_path
from metasparse_ext.cli.messages import UserError, checked, console, file_path, folder
from metasparse_ext.data.given import class_folders
from metasparse_ext.export.files import ENDINGS, format_of
from metasparse_ext.training import Prediction, Run, export_masks, load


def _loading(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of how a run is loaded, for :func:`metasparse_ext.training.load`."""
    for option in (
        click.option("--root", help="Folder of the data set's files, if it has moved."),
        click.option("--device", help="Torch device, if not the run's."),
        click.option(
            "--adapt-steps", type=click.IntRange(0), help="Steps of adaptation, if not the run's."
        ),
        click.option(
            "--distribution", help="Of a run on several data sets, the one that the task is like."
        ),
        click.option(
            "--invert/--no-invert",
            default=None,
            help="Make dark bright in images; by default for runs on omniglot.",
        ),
    ):
        command = option(command)
    return command


@click.command("predict")
@click.argument("run", callback=folder)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--support",
    type=file_path,
    required=True,
    help="Folder with a folder of images for each class.",
)
@click.option(
    "--transductive",
    is_flag=True,
    help="Batch statistics over all IMAGEs together; else of each beside the support set.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every probability.")
@_loading
def predict(
    run: Run,
    images: Sequence[str],
    support: Path,
    transductive: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Classify every IMAGE by RUN's best checkpoint, adapted to the classes of --support."""
    classes = class_folders("predict", support)

    def classified() -> list[Prediction]:
        trained = load(run, **options)
        return trained.classify(classes, list(images), transductive=transductive)

    found = checked(classified)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
        return
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("image", overflow="fold")
    shown.add_column("class", overflow="fold")
    shown.add_column("probability", justify="right", no_wrap=True)
    for each in found:
        shown.add_row(each.image, each.label, f"{100 * each.probability:.1f} %")
    console().print(shown)


@click.command("export")
@click.argument("run", callback=folder)
@click.option(
    "--out",
    required=True,
    help="File to write: .pt2, .onnx, .safetensors, .metasparse, or .npz for masks.",
)
@click.option(
    "--to",
    type=click.Choice([*ENDINGS, "masks"]),
    help="What to write; by default as --out ends.",
)
@click.option("--support", type=file_path, help="Folder with a folder of images for each class.")
@click.option(
    "--transductive",
    is_flag=True,
    help="Batch statistics of the images given together; else those of the support set, fixed.",
)
@_loading
def export(
    run: Run, out: str, to: str | None, support: Path | None, transductive: bool, **options: Any
) -> None:
    """Write RUN's network, adapted to the classes of --support, to a file that others read.

    torch (.pt2) is a program for torch.export.load, onnx one for ONNX runtimes, safetensors the
    tensors, metasparse what of them is not pruned. Without --support, masks (.npz): zeros and ones
    of RUN's best checkpoint by the name of the layer.
    """
    path = checked(lambda: require_path("export", "path", out))
    kind = checked(lambda: format_of("export", path, to, {**ENDINGS, "masks": ".npz"}))
    if kind == "masks":
        _export_masks(run, out, options.pop("root"), {"support": support, **options})
        return
    if support is None:
        raise UserError(f"export: --to {kind} needs --support, the images to adapt to")
    classes = class_folders("export", support)
    try:
        checked(lambda: load(run, **options).export(classes, path, kind, transductive=transductive))
    except ImportError as error:
        raise UserError(str(error)) from error
    listed = ", ".join(classes)
    click.echo(f"wrote {path}, {path.stat().st_size:,} bytes: {listed}")


def _export_masks(run: Run, out: str, root: str | None, others: Mapping[str, Any]) -> None:
    flags = ", ".join(f"--{n.replace('_', '-')}" for n, v in others.items() if v is not None)
    if flags:
        raise UserError(f"export: masks are those of the run, not of a task: leave out {flags}")
    masks = checked(lambda: export_masks(run, out, root=root))
    for name, mask in masks.items():
        click.echo(f"{name:24}{tuple(mask.shape)!s:20}{mask.mean():7.2%} active")
