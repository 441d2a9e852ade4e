"""``metasparse train`` and ``demo``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from metasparse_ext.cli.display import reporter
from metasparse_ext.cli.messages import INTERRUPTED, UserError, checked, console, say
from metasparse_ext.cli.options import configure, preset_fields, run_options
from metasparse_ext.training import Outcome, Run, Trainer
from metasparse_ext.training.distributed import first_process, joined


@click.command("train")
@click.argument("learner")
@run_options
@click.option("--out", required=True, help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out, if any.")
def train(learner: str, out: str, resume: bool, **flags: Any) -> None:
    """Train LEARNER, one of `metasparse learners` or package.module:Class, into a run folder.

    The folder gets config.json, metrics.jsonl, last.safetensors and best.safetensors. Ctrl-C
    saves and stops; the same command with --resume goes on, exactly. Under torchrun, processes
    share the tasks of a meta-batch.
    """
    run, shown_on = Run(out), console(quiet=not first_process())
    if run.started and not resume:
        raise UserError(
            f"{out} already holds a run: add --resume to go on, or choose another --out"
        )
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    base = run.config().to_dict() if run.started else preset_fields(learner, given)
    config = configure(learner, given, base)
    if resume and not run.started:
        say(shown_on, f"nothing to resume in {out}: starting")
    with ExitStack() as stack:
        workers = checked(lambda: stack.enter_context(joined(config.device)))
        shown = stack.enter_context(reporter(shown_on))
        trainer = checked(lambda: Trainer(config, run, reporter=shown, workers=workers))
        outcome = trainer.fit()
    if outcome.interrupted:
        say(shown_on, f"stopped at iteration {outcome.iteration}, saved: --resume goes on")
        sys.exit(INTERRUPTED)
    say(shown_on, _ending(trainer, outcome))


@click.command("demo")
@click.option("--out", default="runs/demo", show_default=True, help="Folder to write.")
def demo(out: str) -> None:
    """Train dense, prune half, and compare, on drawn characters: a few minutes."""
    from metasparse_ext.cli.demo import demo as run_demo

    run_demo(Path(out), console())


def _ending(trainer: Trainer, outcome: Outcome) -> str:
    """What came out of training, in a line."""
    best = outcome.best
    if best is None:
        return f"no checkpoint met the budget: {trainer.run} has its last one only"
    return (
        f"best: iteration {best['iteration']}, validation {best['accuracy']:.2%} "
        f"± {best['interval']:.2%}, active kernels {best['active']:.1%}; saved in {trainer.run}"
    )
