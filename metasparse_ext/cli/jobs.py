"""Runs that are trained several at a time, each by a process of its own.

A process gets its run as a line of JSON, writes what it has to say to ``log.txt`` in the run
folder, and answers with another line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

import metasparse_ext
from metasparse_ext import _atomic as atomic
from metasparse_ext.cli.messages import INTERRUPTED, UserError, console, foreseen, say
from metasparse_ext.cli.runs import Planned, ending, train_one
from metasparse_ext.training import Outcome, Run, RunConfig
from metasparse_ext.training.distributed import ALONE, StopRequest

_COMMAND = "from metasparse_ext.cli.jobs import work; work()"
_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class _Job:
    """A run that is being trained.

    Attributes:
        planned: The run.
        process: Which trains it.
        place: Its number among those at work.
    """

    planned: Planned
    process: subprocess.Popen[bytes]
    place: int


def train_beside(
    planned: Sequence[Planned], jobs: int, reports: Sequence[str], shown_on: Console
) -> list[tuple[Planned, Outcome | str]]:
    """Trains runs, or goes on with them, so many at a time; returns how each ended.

    The cores are divided among them, unless OMP_NUM_THREADS says otherwise, and so are the GPUs
    that ``cuda`` can be.

    Raises:
        SystemExit: If it was interrupted; the runs are saved first.
        UserError: If several processes share the tasks of each run already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--jobs: expected none under torchrun, whose processes share each run")
    jobs = min(jobs, len(planned))
    waiting = list(enumerate(planned, 1))
    working: list[_Job] = []
    ended: list[tuple[Planned, Outcome | str]] = []
    told = False
    with StopRequest() as request:
        try:
            while working or (waiting and not request.stop):
                while waiting and len(working) < jobs and not request.stop:
                    number, each = waiting.pop(0)
                    say(shown_on, f"{each.run} ({number} of {len(planned)})")
                    place = min(set(range(jobs)) - {job.place for job in working})
                    working.append(_started(each, place, jobs, reports))
                if request.stop and not told:
                    told = True
                    _stop(working)
                for job in [job for job in working if job.process.poll() is not None]:
                    working.remove(job)
                    outcome = _outcome(job)
                    ended.append((job.planned, outcome))
                    say(shown_on, _said(job.planned.run, outcome))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            # Where this is interrupted once more.
            _stop(working)
    if request.stop:
        sys.exit(INTERRUPTED)
    return ended


def _started(planned: Planned, place: int, jobs: int, reports: Sequence[str]) -> _Job:
    folder = planned.run.folder
    atomic.make_folder(folder)
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **_share(planned.config.device, place, jobs)},
            start_new_session=True,  # Ctrl-C is passed on, once
        )
    job = {"folder": str(folder), "config": planned.config.to_dict(), "reports": list(reports)}
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has failed, and says so in its log
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    return _Job(planned, process, place)


def _share(device: str, place: int, jobs: int) -> dict[str, str]:
    """What of its environment a process does not share: cores, its GPU, modules of one's own."""
    share = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the modules found here
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // jobs))
    if device == "cuda" and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        share["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place % count]
    return share


def _stop(working: Sequence[_Job]) -> None:
    for job in working:
        job.process.terminate()


def _outcome(job: _Job) -> Outcome | str:
    """How a run ended: its outcome, or what it failed with."""
    answer, _ = job.process.communicate()
    code = job.process.returncode
    if answer:
        said = json.loads(answer)
        return said["error"] if "error" in said else Outcome(**said["outcome"])
    if code == INTERRUPTED:
        return "stopped, saved: --resume goes on"
    return f"its process ended with exit code {code}: see {job.planned.run.folder / 'log.txt'}"


def _said(run: Run, outcome: Outcome | str) -> str:
    return f"{run}: {outcome}" if isinstance(outcome, str) else ending(run, outcome)


def work() -> None:
    """What a process does: the run that it reads of, and an answer."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints does so into the log
    if sys.platform == "linux":
        metasparse_ext.keep_memory()
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    answer.write(json.dumps(_worked(job)))
    answer.flush()


def _worked(job: dict[str, Any]) -> dict[str, Any]:
    shown_on = console()
    planned = Planned(Run(job["folder"]), RunConfig.from_dict(job["config"]), {})
    try:
        return {"outcome": vars(train_one(planned, ALONE, shown_on, job["reports"]))}
    except Exception as error:
        said = foreseen(error)
        if said is None:
            raise
        say(shown_on, said[0])
        return {"error": said[0]}


def _stop_with_parent() -> None:
    """Saves and ends where the process that waits for the answer is gone."""
    os.read(0, 1)  # not of sys.stdin, whose lock a process that ends wants
    os.kill(os.getpid(), signal.SIGTERM)
