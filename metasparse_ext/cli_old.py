"""The command line: thin over :mod:`metasparse_ext.training`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table

import metasparse_ext
from metasparse_ext.algorithms import LEARNERS, PRESETS, SOURCES
from metasparse_ext.data import DataError
from metasparse_ext.training import (
    CheckpointError,
    Outcome,
    Run,
    RunConfig,
    Trainer,
    TrainingError,
    evaluate_run,
    export_masks,
    results,
)
from metasparse_ext.training.config import BACKBONES, OPTIMISERS, SCHEDULES
from metasparse_ext.training.distributed import first_process, joined
from metasparse_ext.training.progress import reporter

T = TypeVar("T")

INTERRUPTED = 130
_MARKUP = re.compile(r"(?::\w+:)?`+~?(?:[\w.]+\.)?([^`]+)`+")
_LEARNER_FLAGS = (
    *("inner_lr", "inner_steps", "mode", "budget", "lambda3"),
    *("search", "density", "rounds", "rewind"),
)


class UserError(click.ClickException):
    """Something asked for that cannot be done: one line on stderr, exit code 2."""

    exit_code = 2


class _OneLineErrors(click.Group):
    """A group that reports every foreseen error as one line on stderr."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            code = 2
        except click.Abort:
            code = INTERRUPTED
        except (click.ClickException, DataError, CheckpointError) as error:
            code = _report(error, 2)
        except TrainingError as error:
            code = _report(error, 1)
        sys.exit(code)


def _report(error: Exception, code: int) -> int:
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    click.echo(f"metasparse: {' '.join(message.split())}", err=True)
    return code


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metasparse_ext.__version__, prog_name="metasparse")
def main() -> None:
    """Sparse meta-learning: train, evaluate and plot."""


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Several click options as one decorator, shown in the order given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _field(flag: str, kind: Any, text: str) -> Callable[..., Any]:
    """An option for a field of RunConfig, whose default it shows."""
    name = flag.lstrip("-").split("/")[0].replace("-", "_")
    value = getattr(RunConfig, name)
    if isinstance(value, bool):
        value = [word.lstrip("-") for word in flag.split("/")][not value]
    shown = "" if value is None else f"  [default: {value}]"
    return click.option(flag, name, type=kind, default=None, help=text + shown)


_CONFIG_OPTIONS = _options(
    click.option("--preset", help="Published settings to start from: `metasparse presets`."),
    _field("--data", str, "Data set: glyphs, omniglot, cifar-fs or folder; several joined by +."),
    _field("--root", str, "Folder of the data set's files."),
    _field("--image-size", int, "Resize images to this side."),
    _field("--rotations/--no-rotations", bool, "Rotate training classes by multiples of 90°."),
    _field("--ways", int, "Classes per task."),
    _field("--shots", int, "Support images per class."),
    _field("--queries", int, "Query images per class."),
    _field("--tasks", int, "Tasks per meta-batch."),
    _field("--backbone", click.Choice(BACKBONES), "Network."),
    _field("--width", int, "Channels of Conv-4's blocks, or of ResNet-12's first."),
    _field("--strided/--pooled", bool, "Strided convolutions in Conv-4, or max-pools."),
    _field("--iterations", int, "Meta-iterations."),
    _field("--max-seconds", float, "Train for so many seconds of processor time instead."),
    click.option("--inner-lr", type=float, help="Learning rate of adaptation."),
    click.option("--inner-steps", type=int, help="Steps of adaptation."),
    click.option("--order", type=click.Choice(["first", "second"]),
                 help="Order of MAML's gradient."),
    click.option("--mode", type=click.Choice(["paper", "official"]),
                 help="Follow the paper or the official code."),
    click.option("--budget", type=float, help="Fraction of kernels to keep."),
    click.option("--lambda3", type=float, help="Final weight of the budget loss."),
    click.option("--search", type=click.Choice(["iterative", "early"]),
                 help="How meta-ticket finds its weights."),
    click.option("--density", type=float, help="Fraction of the weights that a ticket keeps."),
    click.option("--rounds", type=int, help="Prunings of the iterative search."),
    click.option("--rewind", type=int, help="Iteration that a ticket's weights return to."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                 help="Any other option of the learner; repeatable."),
    _field("--optimiser", click.Choice(OPTIMISERS), "Outer optimiser."),
    _field("--meta-lr", float, "Learning rate of the outer optimiser."),
    _field("--mask-lr", float, "The same for mask scores; by default --meta-lr."),
    _field("--adam-eps", float, "Adam's epsilon."),
    _field("--schedule", click.Choice(SCHEDULES), "Schedule of the outer rate."),
    _field("--clip-norm", float, "Clip the meta-gradient's norm."),
    _field("--clip-value", float, "Clip each element of the meta-gradient."),
    _field("--init-from", str, "Run whose network is the start, such as a dense pre-training."),
    _field("--seed", int, "Seed of weights and episodes."),
    _field("--validate-every", int, "Iterations between validations."),
    _field("--validation-tasks", int, "Tasks of a validation."),
    _field("--validation-split", click.Choice(["val", "test"]),
           "Split that chooses the best checkpoint."),
    _field("--evaluation-tasks", int, "Tasks of `metasparse evaluate`."),
    _field("--transductive/--no-transductive", bool, "Batch statistics over all queries, or not."),
    _field("--workers", int, "Threads that draw episodes ahead."),
    _field("--save-every", int, "Iterations between checkpoints."),
    _field("--log-every", int, "Iterations between lines of metrics."),
    _field("--device", str, "Torch device."),
    _field("--capture/--no-capture", bool, "On a GPU: a meta-step as one CUDA graph, or not."),
)  # fmt: skip


@main.command()
@click.argument("learner")
@_CONFIG_OPTIONS
@click.option("--out", required=True, help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if any.")
def train(learner: str, out: str, resume: bool, **flags: Any) -> None:
    """Train LEARNER and write a run folder.

    The folder gets config.json, metrics.jsonl, last.pt and best.pt. Ctrl-C saves and stops; the
    same command with --resume goes on, exactly. Under torchrun, processes
    share the tasks of a meta-batch.
    """
    run, console = Run(out), Console(quiet=not first_process())
    if run.started and not resume:
        raise UserError(
            f"{out} already holds a run: add --resume to go on, or choose another --out"
        )
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    base = run.config().to_dict() if run.started else _preset(learner, given)
    config = _configure(learner, given, base)
    if resume and not run.started:
        _say(console, f"nothing to resume in {out}: starting")
    with joined(config.device) as workers, reporter(console) as shown:
        trainer = _checked(lambda: Trainer(config, run, reporter=shown, workers=workers))
        outcome = trainer.fit()
    if outcome.interrupted:
        _say(console, f"stopped at iteration {outcome.iteration}, saved: --resume goes on")
        sys.exit(INTERRUPTED)
    _say(console, _ending(trainer, outcome))


def _ending(trainer: Trainer, outcome: Outcome) -> str:
    """What came out of training, in a line."""
    best = outcome.best
    if best is None:
        return f"no checkpoint met the budget: {trainer.run} has its last one only"
    return (
        f"best: iteration {best['iteration']}, validation {best['accuracy']:.2%} "
        f"± {best['interval']:.2%}, active kernels {best['active']:.1%}; saved in {trainer.run}"
    )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


@main.command()
@click.argument("run")
@click.option("--tasks", type=click.IntRange(1), help="How many tasks; by default the run's (600).")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Classes that the tasks are drawn from.",
)
@click.option(
    "--transductive/--no-transductive",
    default=None,
    help="Batch statistics over all queries of a task, or over the support set and one "
    "query; by default the run's.",
)
@click.option(
    "--adapt-steps", type=click.IntRange(0), help="Steps of adaptation, if not the run's."
)
@click.option("--root", help="Folder of the data set's files, if it has moved.")
@click.option("--device", help="Torch device, if not the run's.")
def evaluate(run: str, **options: Any) -> None:
    """Evaluate the best checkpoint of RUN on classes it has not seen."""
    result = evaluate_run(Run(run), **options)
    console = Console()
    console.print(results.table({run: result}))
    _say(console, results.remark(result))


@main.command()
@click.argument("run")
@click.option("--out", required=True, help="File to write, .npz.")
def export(run: str, out: str) -> None:
    """Write the masks of RUN's best checkpoint: zeros and ones by the name of the layer."""
    for name, mask in export_masks(Run(run), Path(out)).items():
        click.echo(f"{name:24}{tuple(mask.shape)!s:20}{mask.mean():7.2%} active")


@main.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", help="Folder for the pictures; by default the first RUN.")
@click.option(
    "--against",
    type=click.Choice(["iteration", "elapsed"]),
    default="iteration",
    show_default=True,
    help="Draw learning curves against iterations, or processor seconds of training.",
)
def plot(runs: Sequence[str], out: str | None, against: str) -> None:
    """Draw learning curves and, of evaluated runs, accuracy against cost and kernels in use."""
    from metasparse_ext.training import figures

    folders = {name: Run(name) for name in runs}
    for folder in folders.values():
        folder.config()
    for picture in figures.draw(folders, Path(out or runs[0]), against=against):
        click.echo(picture)


@main.command()
@click.option("--out", default="runs/demo", show_default=True, help="Folder to write.")
def demo(out: str) -> None:
    """Train dense, prune half, and compare, on drawn characters: a few minutes."""
    from metasparse_ext.training.demo import demo as run_demo

    run_demo(Path(out), Console())


@main.command()
def info() -> None:
    """Print versions and backends in use."""
    for name, value in metasparse_ext.info().items():
        click.echo(f"{name:15}{value}")


@main.command()
@click.argument("name", required=False)
def learners(name: str | None) -> None:
    """List the learners, or say of one NAME what is exact, what reconstructed, and its options."""
    console = Console()
    if name is not None:
        console.print(_about(_known("learner", name, LEARNERS)))
        return
    shown = Table("learner", "what it is", "source", box=None, pad_edge=False)
    for known, kind in LEARNERS.items():
        shown.add_row(known, _summary(kind), SOURCES[known].paper)
    console.print(shown)


def _about(name: str) -> Table:
    """A learner's source, and its options with their defaults."""
    kind, source = LEARNERS[name], SOURCES[name]
    parameters = inspect.signature(kind).parameters
    options = ", ".join(f"{o}={parameters[o].default!r}" for o in _learner_options(kind))
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


@main.command()
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the published settings that --preset takes, or all of one NAME."""
    if name is None:
        click.echo("\n".join(PRESETS))
        return
    preset = PRESETS[_known("preset", name, PRESETS)]
    for key, value in preset.settings().items():
        shown = ", ".join(f"{k}={v}" for k, v in value.items()) if key == "options" else value
        click.echo(f"{key:12}{shown}")
    if preset.note:
        click.echo(f"{'note':12}{preset.note}")


def _preset(learner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the preset that was named; a ramp follows the iterations where they change."""
    if "preset" not in given:
        return {}
    name = _known("preset", given["preset"], PRESETS)
    fields = PRESETS[name].settings()
    if fields["learner"] != learner:
        raise UserError(f"preset {name} is of {fields['learner']}, not of {learner}")
    if "iterations" in given and fields["options"].get("total_iterations") == fields["iterations"]:
        del fields["options"]["total_iterations"]
    return fields


def _configure(learner: str, given: Mapping[str, Any], base: Mapping[str, Any]) -> RunConfig:
    """The configuration ``base`` with the flags that were given."""
    kind = LEARNERS[_known("learner", learner, LEARNERS)]
    options = {**base.get("options", {}), **_chosen_options(learner, kind, given)}
    names = {entry.name for entry in dataclasses.fields(RunConfig)}
    fields = {name: value for name, value in given.items() if name in names}
    return _checked(lambda: RunConfig(**{**base, **fields, "learner": learner, "options": options}))


def _chosen_options(learner: str, kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The learner's options among the flags, checked against its constructor."""
    chosen = {name: given[name] for name in _LEARNER_FLAGS if name in given}
    if "order" in given:
        chosen["first_order"] = given["order"] == "first"
    for setting in given.get("settings", ()):
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set: expected KEY=VALUE, got {setting!r}")
        chosen[key.strip().replace("-", "_")] = _literal(value.strip())
    known = _learner_options(kind)
    for name in chosen:
        if name not in known:
            flag = "--order" if name == "first_order" else name
            raise UserError(f"{learner} has no option {flag}; it has {', '.join(known)}")
    return chosen


def _learner_options(kind: type) -> list[str]:
    """Names of the constructor's keyword arguments."""
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _literal(text: str) -> Any:
    """A Python literal, true, false or none in any case, or else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _known(what: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of ``names``; else an error that suggests the nearest."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise UserError(f"unknown {what} {name!r}: {hint}")


def _checked(make: Callable[[], T]) -> T:
    """What ``make`` returns; a value it refuses is the user's error, not a crash."""
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    main(prog_name="metasparse")
