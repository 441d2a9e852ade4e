"""Training: ``metasparse train``, of one run or one for each seed, and ``metasparse sweep``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from metasparse_ext._entries import is_label
from metasparse_ext.cli.jobs import train_beside
from metasparse_ext.cli.messages import (
    UserError,
    checked,
    console,
    file_path,
    folder,
    foreseen,
    say,
)
from metasparse_ext.cli.options import base_fields, configure, over, run_options
from metasparse_ext.cli.runs import Planned, summary, train_one
from metasparse_ext.cli.settings import read_settings, settings_of
from metasparse_ext.data.registry import absolute
from metasparse_ext.training import Outcome, Run, RunConfig, TrainingError, build
from metasparse_ext.training.distributed import first_process, joined, started_again
from metasparse_ext.training.parts import require_parts
from metasparse_ext.training.reporters import SERVICES


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


_many_seeds = click.option(
    "--seeds",
    callback=_seeds,
    metavar="N,N,...",
    help="Train one run for each of these seeds, in folders seed-N.",
)

_report = click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Choice(list(SERVICES)),
    help="Tell another of the training, too; repeatable.",
)


_jobs = click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Train so many runs at a time, each in a process of its own that writes log.txt.",
)


@click.command("train")
@click.argument("learner", required=False)
@click.option(
    "--config",
    "file",
    type=file_path,
    help="Settings in a file, TOML, JSON (such as a run's config.json) or YAML; flags win over it.",
)
@run_options
@_many_seeds
@_jobs
@_report
@click.option("--out", required=True, callback=folder, help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if any.")
def train(
    learner: str | None,
    file: Path | None,
    seeds: tuple[int, ...] | None,
    jobs: int,
    reports: tuple[str, ...],
    out: Run,
    resume: bool,
    **flags: Any,
) -> None:
    """Train LEARNER, one of `metasparse learners` or package.module:Class, into a run folder.

    The folder gets config.json, metrics.jsonl, last.safetensors and best.safetensors. Ctrl-C
    saves and stops; the same command with --resume goes on, exactly. Under torchrun, processes
    share the tasks of a meta-batch, and those that it starts again go on. Modules are imported
    from the present folder, too.
    """
    resume = resume or started_again()
    settings = {} if file is None else read_settings(file)
    if "grid" in settings:
        raise UserError(f"{file}: a grid is of `metasparse sweep`")
    given = _given(flags)
    planned = []
    for run, seed in _for_seeds(out, seeds, given):
        config = _configured(run, learner, {**given, **seed}, settings, resume=resume)
        planned.append(Planned(run, config, _label(seed)))
    train_all(planned, resume=resume, reports=reports, jobs=jobs)


@click.command("sweep")
@click.argument("file", type=file_path)
@run_options
@_many_seeds
@_jobs
@_report
@click.option(
    "--out", required=True, type=file_path, help="Folder to write, with a run folder each."
)
@click.option("--resume", is_flag=True, help="Go on with the runs that are in --out.")
def sweep(
    file: Path,
    seeds: tuple[int, ...] | None,
    jobs: int,
    reports: tuple[str, ...],
    out: Path,
    resume: bool,
    **flags: Any,
) -> None:
    """Train a run for every combination of the lists under [grid] in FILE.

    FILE is one of `metasparse train --config`; flags are those of train. Ends with a table of all
    runs, the best first; a run that diverges, or fails, does not stop the others.
    """
    resume = resume or started_again()
    settings = read_settings(file)
    given = _given(flags)
    planned, wrong = [], []
    shapes: dict[Any, Any] = {}
    varied = given if seeds is None else {**given, "seed": None}
    for setting in settings_of(file, settings, varied):
        for run, seed in _for_seeds(Run(out / setting.name), seeds, given):
            try:
                config = _configured(run, None, {**given, **seed}, setting.fields, resume=resume)
            except UserError as error:
                wrong.append(f"{setting.name}: {error}")
            else:
                refused = _refusal(config, shapes)
                label = {**setting.label, **_label(seed)}
                planned.append(Planned(run, config, label, refused))
    if all(each.refused for each in planned):
        wrong += [f"{each.run.folder.name}: {each.refused}" for each in planned]
    if wrong:
        raise UserError("; ".join(wrong))
    train_all(planned, resume=resume, reports=reports, jobs=jobs)


def _for_seeds(
    run: Run, seeds: tuple[int, ...] | None, given: Mapping[str, Any]
) -> list[tuple[Run, dict[str, Any]]]:
    """A run for each seed in folders of its own, or with none the run alone; with what they set."""
    if seeds is None:
        return [(run, {})]
    if "seed" in given:
        raise UserError("--seeds: expected no --seed beside it")
    return [(Run(run.folder / f"seed-{seed}"), {"seed": seed}) for seed in seeds]


def _label(seed: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in seed.items()}


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


def train_all(
    planned: list[Planned], *, resume: bool, reports: Sequence[str] = (), jobs: int = 1
) -> None:
    """Trains runs, or goes on with them; of several, a table in the end.

    Raises:
        SystemExit: If training was interrupted, or one of several runs failed.
        Exception: What the only one failed with.
    """
    shown_on = console(quiet=not first_process())
    devices = {each.config.device for each in planned}
    if len(devices) > 1:
        raise UserError(f"expected one device for all runs, got {', '.join(sorted(devices))}")
    refused: list[tuple[Planned, Outcome | str]] = []
    for each in planned:
        if each.refused:
            say(shown_on, f"{each.run}: {each.refused}")
            refused.append((each, each.refused))
    left = [each for each in planned if not each.refused]
    if jobs > 1 and len(planned) > 1:
        ended = train_beside(left, jobs, reports, shown_on)
    else:
        alone = len(planned) == 1
        ended = _one_by_one(left, shown_on, reports, resume=resume, alone=alone)
    if len(planned) > 1:
        shown_on.print(summary(refused + ended))
    if any(isinstance(outcome, str) for _, outcome in refused + ended):
        sys.exit(1)


def _one_by_one(
    planned: list[Planned], shown_on: Console, reports: Sequence[str], *, resume: bool, alone: bool
) -> list[tuple[Planned, Outcome | str]]:
    ended: list[tuple[Planned, Outcome | str]] = []
    with ExitStack() as stack:
        device = planned[0].config.device if planned else "cpu"
        workers = checked(lambda: stack.enter_context(joined(device)))
        for number, each in enumerate(planned, 1):
            if not alone:
                say(shown_on, f"{each.run} ({number} of {len(planned)})")
            elif resume and not each.run.started:
                say(shown_on, f"nothing to resume in {each.run}: starting")
            try:
                ended.append((each, train_one(each, workers, shown_on, reports)))
            except Exception as error:
                said = foreseen(error)
                # Of several processes all must go on together.
                by_itself = workers.size == 1 or isinstance(error, TrainingError)
                if alone or said is None or not by_itself:
                    raise
                say(shown_on, f"{each.run}: {said[0]}")
                ended.append((each, said[0]))
    return ended


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
    if run.lost:
        run.refuse_lost()
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
