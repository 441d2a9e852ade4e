"""``metasparse demo``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import click
import torch
from rich.console import Console

from metasparse_ext.cli.display import draw_figures, remark, reporter, table
from metasparse_ext.cli.messages import console, folder
from metasparse_ext.cli.payoff import masked, measure, payoff_table
from metasparse_ext.data import TaskBatch
from metasparse_ext.nn import Conv4
from metasparse_ext.training import (
    Run,
    RunConfig,
    RunEvaluation,
    Trainer,
    build,
    evaluate_run,
    load,
)

# Minutes instead of the hours of the published settings. The dense network learns by MAML with one
# large inner step. MetaDOCK takes five smaller ones, under a proximal term of the order of
# 1 / (steps * rate), with which the implicit gradient comes near the unrolled one that the network
# was trained by; its scores move by a fiftieth of their initial spread per iteration.
DENSE = RunConfig(
    learner="maml",
    options={"inner_lr": 0.4, "inner_steps": 1},
    data="glyphs",
    queries=5,
    iterations=1000,
    meta_lr=3e-3,
    schedule="cosine",
    validate_every=250,
)
PRUNED = DENSE.replace(
    learner="metadock",
    options={
        "mode": "paper",
        "inner_lr": 0.1,
        "inner_steps": 5,
        "cg_steps": 4,
        "budget": 0.5,
        "lambda1": 1.0,
        "lambda4": 0.0,
    },
    iterations=300,
    meta_lr=1e-3,
    mask_lr=2e-4,
    validate_every=50,
)


@click.command("demo")
@click.option(
    "--out", default="runs/demo", show_default=True, callback=folder, help="Folder to write."
)
def demo(out: Run) -> None:
    """Train dense, prune half, and compare, on drawn characters: a few minutes."""
    run_demo(out.folder, console())


def run_demo(folder: Path, shown_on: Console) -> dict[str, RunEvaluation]:
    """Trains both networks, evaluates them on unseen characters and times them, draws figures.

    Args:
        folder: Gets the runs ``dense`` and ``pruned`` and the figures; earlier ones are replaced.
        shown_on: Where progress and results go.

    Returns:
        The evaluations of ``dense`` and ``pruned``.

    Raises:
        KeyboardInterrupt: If training was interrupted.
    """
    started = time.monotonic()
    threads = torch.get_num_threads()
    # Tensors this small gain little from a second thread, and lose tenfold where it has to wait for
    # a core that is busy elsewhere.
    torch.set_num_threads(1)
    try:
        found = _compare(folder, shown_on)
    finally:
        torch.set_num_threads(threads)
    shown_on.print(f"{time.monotonic() - started:.0f} seconds in all", highlight=False)
    return found


def _compare(folder: Path, shown_on: Console) -> dict[str, RunEvaluation]:
    runs = {"dense": Run(folder / "dense"), "pruned": Run(folder / "pruned")}
    pruned = PRUNED.replace(init_from=str(runs["dense"]))
    _train(shown_on, "1. A dense Conv-4 learns to learn characters", DENSE, runs["dense"])
    _train(shown_on, "2. MetaDOCK switches half of its kernels off", pruned, runs["pruned"])
    shown_on.rule("3. Both meet characters they have never seen", align="left")
    found = {label: evaluate_run(run) for label, run in runs.items()}
    shown_on.print(table(found, timed=False))
    shown_on.print(remark(found["pruned"]), highlight=False)
    shown_on.rule("4. What is pruned is not computed", align="left")
    task = _task(pruned)
    shown_on.print(payoff_table(measure(_networks(runs), task), task))
    for picture in draw_figures(runs, folder):
        shown_on.print(f"wrote {picture}", highlight=False, soft_wrap=True)
    return found


def _networks(runs: Mapping[str, Run]) -> dict[str, Conv4]:
    """The networks that the runs learned, by label, with the masks that new tasks start from."""
    networks = {}
    for label, run in runs.items():
        learner = load(run).learner
        assert isinstance(learner.model, Conv4)
        networks[label] = masked(learner.model, learner.masks())
    return networks


def _task(config: RunConfig) -> TaskBatch:
    """A task of characters that no network has seen."""
    classes = build.images(config, "test")
    return next(build.held_out_episodes(config, classes, seed=0)).tasks(slice(1))


def _train(shown_on: Console, title: str, config: RunConfig, run: Run) -> None:
    shown_on.rule(title, align="left")
    run.forget()
    with reporter(shown_on) as shown:
        outcome = Trainer(config, run, reporter=shown).fit()
    if outcome.interrupted:
        raise KeyboardInterrupt
