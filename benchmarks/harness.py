"""What every benchmark shares: a fair process, interleaved timing, verification, raw results."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metasparse_ext as ms
from metasparse_ext import _library

RESULTS = Path(__file__).parent / "results"

# Page faults flatter whoever happens to reuse memory: kept, both sides keep theirs, as after
# ms.keep_memory(). With the system's settings both have it as programs of a few lines do; huge,
# PyTorch asks for huge pages besides.
_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}
_HUGE = "THP_MEM_ALLOC_ENABLE"
ALLOCATORS: dict[str, dict[str, str | None]] = {
    "kept": {**_KEPT, _HUGE: None},
    "system": {**dict.fromkeys(_KEPT), _HUGE: None},
    "huge": {**dict.fromkeys(_KEPT), _HUGE: "1"},
}


def fair_process(threads: int, allocator: str = "kept") -> None:
    """Restarts the process once, with the allocator and the number of threads of both sides set."""
    wanted = {**ALLOCATORS[allocator], "OMP_NUM_THREADS": str(threads)}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        others = {name: value for name, value in os.environ.items() if name not in wanted}
        given = {name: value for name, value in wanted.items() if value is not None}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**others, **given})
    torch.set_num_threads(threads)
    if _library.problem is not None:
        sys.exit(f"a benchmark of the slow reference says nothing: {_library.problem}")


def environment() -> dict[str, str]:
    """Versions, processor, threads and revision, to lie beside every figure."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        **ms.info(),
        "processor": f"{model}, {os.cpu_count()} cores",
        "revision": _revision(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _revision() -> str:
    """The commit, and whether anything but results differs from it; nothing outside a clone."""
    git, folder = shutil.which("git"), Path(__file__).parent
    if git is None:
        return ""

    def answer(*question: str) -> str:
        command = [git, *question]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        return run.stdout.strip()

    changed = answer("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    return answer("describe", "--always") + ("-dirty" if changed else "")


def peak_memory() -> int:
    """Bytes of the largest resident set that this process had.

    What getrusage says has that of the process that it was forked from in it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(kilobytes) << 10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over the interleaved rounds: median and quartiles."""

    median: float
    lower: float
    upper: float
    rounds: int


def interleave(
    variants: dict[str, Callable[[], object]],
    *,
    budget: float = 0.5,
    least: int = 5,
    most: int = 100,
) -> dict[str, Timing]:
    """Times the variants in turn, A B C A B C …, so that a slow phase of the machine hits all.

    Args:
        variants: Calls by name; each is warmed up twice before.
        budget: Seconds to spend, as far as ``least`` rounds and at most ``most`` allow.

    At one thread the clock is the thread's own processor time, which other processes do not
    disturb; at several it is the wall's.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(2):
        start = time.perf_counter()
        for call in variants.values():
            call()
        once = time.perf_counter() - start
    rounds = max(least, min(most, int(budget / max(once, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: summary(values) for name, values in seconds.items()}


def summary(values: list[float]) -> Timing:
    """The median and the quartiles of at least two measurements."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper, len(values))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest entry of what is expected."""
    scale = expected.abs().max().item()
    return (actual.double() - expected.double()).abs().max().item() / max(scale, 1e-30)


class WrongResult(AssertionError):
    """A result that misses its bound: no time is reported for it."""


def verify(name: str, actual: Tensor, expected: Tensor, bound: float) -> float:
    """The relative error, which must be within the bound."""
    error = relative_error(actual, expected)
    if not error <= bound:
        raise WrongResult(f"{name}: error {error:.1e} of the largest entry, bound {bound:.0e}")
    return error


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: what was measured, ours, and every stock way beside it.

    ``more`` holds what else is known of it, such as achieved rates.
    """

    group: str
    case: dict[str, object]
    error: float
    ours: Timing
    stock: dict[str, Timing]
    more: dict[str, object] = field(default_factory=dict)

    @property
    def best_stock(self) -> str:
        return min(self.stock, key=lambda name: self.stock[name].median)

    @property
    def speedup(self) -> float:
        """Over the fastest stock way."""
        return self.stock[self.best_stock].median / self.ours.median

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "best_stock": self.best_stock, "speedup": self.speedup}


def save(name: str, rows: list[Row], folder: Path = RESULTS, **more: object) -> Path:
    """Writes the raw rows, ``more`` and their environment to ``name.json`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    rows_json = [row.to_json() for row in rows]
    document = {"environment": environment(), **more, "rows": rows_json}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def load(name: str) -> dict[str, Any] | None:
    """What ``save`` wrote under this name, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None
