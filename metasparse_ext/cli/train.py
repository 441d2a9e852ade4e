"""Training: ``metasparse train``, of one run or one for each seed, and ``metasparse sweep``."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from metasparse_ext._entries import is_label
from metasparse_ext.cli.display import reporter, score_text
from metasparse_ext.cli.messages import (
    INTERRUPTED,
    UserError,
    checked,
    console,
    folder,
    foreseen,
    say,
)
from metasparse_ext.cli.options import base_fields, configure, over, run_options
from metasparse_ext.cli.settings import read_settings, settings_of
from metasparse_ext.data.registry import absolute
from metasparse_ext.training import Outcome, Reporter, Run, RunConfig, Trainer, TrainingError, build
from metasparse_ext.training.distributed import Workers, first_process, joined
from metasparse_ext.training.parts import require_parts
from metasparse_ext.training.reporters import REPORTERS

_FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class Planned:
    """A run that is to be trained.

    Attributes:
        run: Its folder.
        config: What to train.
        label: What to call it in a table, by column.
        refused: Why it cannot be trained, if that is known before.
    """

    run: Run
    config: RunConfig
    label: Mapping[str, str]
    refused: str | None = None


def _seeds(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Reads whole numbers with commas between."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        wanted = "different whole numbers, such as 0,1,2"
        raise click.BadParameter(f"expected {wanted}, got {text!r}", context, option)
    return tuple(map(int, parts))


_report = click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Choice(list(REPORTERS)),
    help="Tell another of the training, too; repeatable.",
)


@click.command("train")
@click.argument("learner", required=False)
@click.option(
    "--config",
    "file",
    type=_FILE,
    help="Settings in a file, TOML, JSON (such as a run's config.json) or YAML; flags win over it.",
)
@run_options
@click.option(
    "--seeds",
    callback=_seeds,
    metavar="N,N,...",
    help="Train one run for each of these seeds, in folders seed-N of --out.",
)
@_report
@click.option("--out", required=True, callback=folder, help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if any.")
def train(
    learner: str | None,
    file: Path | None,
    seeds: tuple[int, ...] | None,
    reports: tuple[str, ...],
    out: Run,
    resume: bool,
    **flags: Any,
) -> None:
    """Train LEARNER, one of `metasparse learners` or package.module:Class, into a run folder.

    The folder gets config.json, metrics.jsonl, last.safetensors and best.safetensors. Ctrl-C
    saves and stops; the same command with --resume goes on, exactly. Under torchrun, processes
    share the tasks of a meta-batch. Modules are imported from the present folder, too.
    """
    settings = {} if file is None else read_settings(file)
    if "grid" in settings:
        raise UserError(f"{file}: a grid is of `metasparse sweep`")
    given = _given(flags)
    if seeds is not None and "seed" in given:
        raise UserError("--seeds: expected no --seed beside it")
    each = [{}] if seeds is None else [{"seed": seed} for seed in seeds]
    planned = []
    for seed in each:
        run = Run(out.folder / f"seed-{seed['seed']}") if seed else out
        config = _configured(run, learner, {**given, **seed}, settings, resume=resume)
        planned.append(Planned(run, config, {name: str(value) for name, value in seed.items()}))
    train_all(planned, resume=resume, reports=reports)


@click.command("sweep")
@click.argument("file", type=_FILE)
@run_options
@_report
@click.option("--out", required=True, type=_FILE, help="Folder to write, with a run folder each.")
@click.option("--resume", is_flag=True, help="Go on with the runs that are in --out.")
def sweep(file: Path, reports: tuple[str, ...], out: Path, resume: bool, **flags: Any) -> None:
    """Train a run for every combination of the lists under [grid] in FILE.

    FILE is one of `metasparse train --config`; flags are those of train. Ends with a table of all
    runs, the best first; a run that diverges, or fails, does not stop the others.
    """
    settings = read_settings(file)
    given = _given(flags)
    planned, wrong = [], []
    shapes: dict[Any, Any] = {}
    for setting in settings_of(file, settings, given):
        run = Run(out / setting.name)
        try:
            config = _configured(run, None, given, setting.fields, resume=resume)
        except UserError as error:
            wrong.append(f"{setting.name}: {error}")
        else:
            refused = _refusal(config, shapes)
            planned.append(Planned(run, config, setting.label, refused))
    if all(each.refused for each in planned):
        wrong += [f"{each.run.folder.name}: {each.refused}" for each in planned]
    if wrong:
        raise UserError("; ".join(wrong))
    train_all(planned, resume=resume, reports=reports)


def _refusal(config: RunConfig, shapes: dict[Any, Any]) -> str | None:
    """Why a run cannot be built, so that it is said before hours are spent on others.

    Args:
        config: Of the run.
        shapes: Of the inputs, and numbers to predict, of the data seen before; more are added.
    """

    def built() -> None:
        require_parts(config)
        fields = ["data", "root", "image_size"]
        if build.is_own(config.data):
            fields += ["ways", "shots", "queries", "tasks", "seed"]
        key = tuple(getattr(config, name) for name in fields)
        if key not in shapes:
            classes = build.images(config, "train")
            shapes[key] = classes.shape, build.outputs(classes)
        shape, outputs = shapes[key]
        build.learner(config.replace(device="cpu", init_from=None), shape, outputs=outputs)

    try:
        checked(built)
    except Exception as error:
        said = foreseen(error)
        if said is None:
            raise
        return said[0]
    return None


def train_all(planned: list[Planned], *, resume: bool, reports: Sequence[str] = ()) -> None:
    """Trains runs, or goes on with them, one after the other; of several, a table in the end.

    Raises:
        SystemExit: If training was interrupted, or one of several runs failed.
        Exception: What the only one failed with.
    """
    shown_on = console(quiet=not first_process())
    devices = {each.config.device for each in planned}
    if len(devices) > 1:
        raise UserError(f"expected one device for all runs, got {', '.join(sorted(devices))}")
    ended: list[tuple[Planned, Outcome | str]] = []
    with ExitStack() as stack:
        workers = checked(lambda: stack.enter_context(joined(devices.pop())))
        for each in planned:
            if each.refused:
                say(shown_on, f"{each.run}: {each.refused}")
                ended.append((each, each.refused))
        left = [each for each in planned if not each.refused]
        for number, each in enumerate(left, 1):
            if len(planned) > 1:
                say(shown_on, f"{each.run} ({number} of {len(left)})")
            elif resume and not each.run.started:
                say(shown_on, f"nothing to resume in {each.run}: starting")
            try:
                ended.append((each, _trained(each, workers, shown_on, reports)))
            except Exception as error:
                said = foreseen(error)
                # Of several processes all must go on together.
                alone = workers.size == 1 or isinstance(error, TrainingError)
                if len(planned) == 1 or said is None or not alone:
                    raise
                say(shown_on, f"{each.run}: {said[0]}")
                ended.append((each, said[0]))
    if len(planned) > 1:
        shown_on.print(_summary(ended))
    if any(isinstance(outcome, str) for _, outcome in ended):
        sys.exit(1)


def _trained(
    planned: Planned, workers: Workers, shown_on: Console, reports: Sequence[str]
) -> Outcome:
    run = planned.run
    with reporter(shown_on) as shown:
        told = [shown, *_reporters(run, reports)]
        trainer = checked(lambda: Trainer(planned.config, run, reporter=told, workers=workers))
        if trainer.chunk is not None:
            say(shown_on, str(trainer.chunk))
        outcome = checked(trainer.fit)
    if outcome.interrupted:
        say(shown_on, f"stopped at iteration {outcome.iteration}, saved: --resume goes on")
        sys.exit(INTERRUPTED)
    say(shown_on, _ending(run, outcome))
    return outcome


def _reporters(run: Run, names: Sequence[str]) -> list[Reporter]:
    """Those of these names; of processes that train together, the first has them."""
    try:
        return [REPORTERS[name](run) for name in dict.fromkeys(names) if first_process()]
    except ImportError as error:
        raise UserError(str(error)) from error


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value not in (None, ())}


def _configured(
    run: Run,
    learner: str | None,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    resume: bool,
) -> RunConfig:
    """What a run is to be trained with: flags over a file, over a preset or the run as it was."""
    if not run.started:
        return configure(learner, given, base_fields(learner, given, settings))
    if not resume and run.untrained:
        return configure(learner, given, base_fields(learner, given, settings))
    if not resume:
        raise UserError(
            f"{run} already holds a run: add --resume to go on, or choose another --out"
        )
    begun = run.config()
    if run.untrained and learner not in (None, begun.learner):
        return configure(learner, given, base_fields(learner, given, settings))
    _require_named(run, begun)
    config = configure(learner, given, over(begun.to_dict(), settings))
    # Runs of earlier versions, and those begun from Python, may have a path of the present folder.
    same = config.data == absolute(begun.data)
    return config.replace(data=begun.data) if same else config


def _require_named(run: Run, config: RunConfig) -> None:
    """Refuses to go on with a run whose parts are objects."""
    for name in ("learner", "model", "data", "loss", "metric", "optimizer"):
        part = getattr(config, name)
        if part is not None and is_label(part):
            raise UserError(f"{run} was begun from Python with {name} {part}: go on with it there")


def _ending(run: Run, outcome: Outcome) -> str:
    """What came out of training, in a line."""
    best = outcome.best
    if best is None:
        return f"no checkpoint met the budget: {run} has its last one only"
    return (
        f"best: iteration {best['iteration']}, validation {score_text(best)}, "
        f"active kernels {best['active']:.1%}; saved in {run}"
    )


def _summary(ended: Sequence[tuple[Planned, Outcome | str]]) -> Table:
    """All runs, the best first, then those without a best checkpoint, and those that failed.

    Those that are judged by something else are in a section of their own.
    """
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [(_rank(outcome), each, outcome) for each, outcome in ended]
    for column in rows[0][1].label:
        shown.add_column(column, overflow="fold")
    shown.add_column("validation", no_wrap=True)
    shown.add_column("iteration", justify="right", no_wrap=True)
    shown.add_column("run", overflow="fold")
    judged = list(dict.fromkeys(_judged_by(each, outcome) for _, each, outcome in rows))
    rows.sort(key=lambda row: (row[0][0], judged.index(_judged_by(*row[1:])), row[0]))
    before = None
    for _, each, outcome in rows:
        by = _judged_by(each, outcome)
        if before is not None and by is not None and by != before:
            shown.add_section()
        before = by
        best = None if isinstance(outcome, str) else outcome.best
        text = "failed" if isinstance(outcome, str) else "none met the budget"
        shown.add_row(
            *each.label.values(),
            text if best is None else score_text(best),
            "" if best is None else str(best["iteration"]),
            str(each.run),
        )
    scores = [o.best for _, o in ended if not isinstance(o, str) and o.best is not None]
    if list(rows[0][1].label) == ["seed"] and len(scores) == len(rows):
        shown.add_section()
        shown.add_row("mean", _mean(scores))
    return shown


def _judged_by(planned: Planned, outcome: Outcome | str) -> tuple[str | None, ...] | None:
    """What a run was judged by; None where it has no best checkpoint."""
    if isinstance(outcome, str) or outcome.best is None:
        return None
    config, name = planned.config, outcome.best.get("measure")
    return name, config.metric, config.loss if config.metric is None and name else None


def _mean(scores: Sequence[Mapping[str, Any]]) -> str:
    """The mean over runs of what they were judged by, and their standard deviation.

    That is of a sample (over n - 1), as `metasparse compare` has it.
    """
    name = scores[0].get("measure", "accuracy")
    values = [float(score[name]) for score in scores]
    percent = name == "accuracy"
    mean = statistics.fmean(values)
    text = f"{mean:.2%}" if percent else f"{name} {mean:.4g}"
    if len(values) == 1:
        return text
    spread = statistics.stdev(values)
    return f"{text}, standard deviation {f'{spread:.2%}' if percent else f'{spread:.2g}'}"


def _rank(outcome: Outcome | str) -> tuple[int, float]:
    """The better, the less."""
    if isinstance(outcome, str):
        return 2, 0.0
    if outcome.best is None:
        return 1, 0.0
    name = outcome.best.get("measure", "accuracy")
    value = float(outcome.best[name])
    return 0, value if outcome.less_is_better else -value
