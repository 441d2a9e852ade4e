"""Trains and evaluates the cases of a study: ``python -m benchmarks.study learners --seconds 600``.

Every stage runs in a process of its own, on one thread, and is a run like any other: what was
stopped goes on, and a case that has its results is not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, environment, fair_process, peak_memory
from benchmarks.long import long
from benchmarks.minutes import MINUTES
from benchmarks.sources import SOURCES
from benchmarks.studies import STUDIES, Budget, Case
from metasparse_ext.training import Run, RunConfig, Trainer, build, evaluate_run, metrics

ALL = {**STUDIES, **SOURCES, **MINUTES, "long": long}
KEPT = ("config.json", "metrics.jsonl", "evaluation-test.json")


Train = Callable[[RunConfig, Run], tuple[float, int]]


@dataclass(frozen=True)
class Measured:
    """What a case took, beside what its run holds.

    Attributes:
        stages: The configurations, to know a case that is done.
        labels: As in :class:`~benchmarks.studies.Case`.
        seconds: Processor time of the training steps of all stages.
        memory: Bytes by which training raised the peak memory of its process, the largest stage's.
        last: The last training record of the last stage.
        environment: Versions and machine.
    """

    stages: list[dict[str, Any]]
    labels: dict[str, str]
    seconds: float
    memory: int
    last: dict[str, Any]
    environment: dict[str, str]


def measured(folder: Path) -> Measured | None:
    """Reads what a case took, if it is done."""
    path = folder / "measured.json"
    return Measured(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def run_case(case: Case, runs: Path, results: Path, train: Train | None = None) -> None:
    """Trains, evaluates and keeps one case, unless that was done.

    Args:
        case: The case.
        runs, results: Folders of the runs, and of what is kept of them.
        train: Trains and evaluates one run, and returns its seconds and its memory; by default in
            a process of its own.
    """
    train = train or _in_a_process
    folder = results / case.name
    stages = _stages(case, runs)
    wanted = [config.to_dict() for config, _ in stages]
    done = measured(folder)
    # Fields that came later are at their defaults in what is done.
    if done and [RunConfig.from_dict(each).to_dict() for each in done.stages] == wanted:
        return
    for config, run in _stages(case.parent, runs) if case.parent else ():
        if not (run.best_path.exists() and run.config() == build.resolved(config)):
            train(config, run)
    costs = [train(config, run) for config, run in stages]
    run = stages[-1][1]
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run.folder / name, folder / name)
    steps = [record for record in metrics.read(run.metrics_path) if record["kind"] == "train"]
    found = Measured(
        stages=wanted,
        labels=case.labels,
        seconds=sum(seconds for seconds, _ in costs),
        memory=max(memory for _, memory in costs),
        last=steps[-1] if steps else {},
        environment=environment(),
    )
    (folder / "measured.json").write_text(json.dumps(asdict(found), indent=1) + "\n")


def _stages(case: Case, runs: Path) -> list[tuple[RunConfig, Run]]:
    """Each stage, from where it starts, and its run."""
    stages = []
    start = str(_stages(case.parent, runs)[-1][1]) if case.parent else None
    for number, stage in enumerate(case.stages):
        run = Run(runs / case.name / str(number))
        stages.append((stage.replace(init_from=start), run))
        start = str(run)
    return stages


def _in_a_process(config: RunConfig, run: Run) -> tuple[float, int]:
    """Trains and evaluates one run; returns its seconds and its memory."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(config.to_json(), str(run), theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        sys.exit(f"{run}: ended with exit code {process.exitcode}; the same command goes on")
    finally:
        process.join()


def _work(config: str, folder: str, answer: Any) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    answer.send(train_here(RunConfig.from_json(config), Run(folder)))


def _stop_with_parent() -> None:
    """Saves and ends where the study was killed: started again, it would train beside this."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def train_here(config: RunConfig, run: Run) -> tuple[float, int]:
    """Trains and evaluates one run in this process; returns its seconds and its memory."""
    before = peak_memory()
    wanted = build.resolved(config)
    if run.started and run.config() != wanted:
        run.forget()  # of other settings: begun anew
    trainer = Trainer(wanted, run)
    outcome = trainer.fit()
    if outcome.interrupted:
        sys.exit(130)
    memory = peak_memory() - before
    evaluate_run(run)
    return trainer.elapsed, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=ALL)
    parser.add_argument("--seconds", type=float, help="processor seconds of training, per case")
    parser.add_argument("--iterations", type=int, help="iterations of a training instead")
    parser.add_argument("--only", default="*", help="cases whose name matches this pattern")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--list", action="store_true", help="only name the cases, and what is done")
    options = parser.parse_args()
    fair_process(1)
    for case in ALL[options.study](Budget(options.seconds, options.iterations)):
        if not fnmatch(case.name, options.only):
            continue
        folder = options.results / options.study
        if options.list:
            print(f"{case.name:30}{'done' if measured(folder / case.name) else ''}")
            continue
        print(f"{options.study}: {case.name}", flush=True)
        run_case(case, options.runs / options.study, folder)


if __name__ == "__main__":
    main()
