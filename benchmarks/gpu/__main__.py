"""The benchmark on a GPU: ``python -m benchmarks.gpu [--quick] [--retune]``.

First what the device itself can do, then whole meta-steps, then every op of the CPU benchmark's
grid, each against PyTorch's own ways at the same precision. Nothing is timed before it is verified.
Raw numbers go to ``gpu.json`` and their tables to ``gpu.md``, written anew as they come; cases for
which no time is left are counted. ``--retune`` measures every candidate backend instead and writes
the table that chooses between them to the same folder. ``--device cpu`` runs tiny cases to exercise
the code, and saves nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu import ceilings, meta_steps, ops, report, retune
from benchmarks.gpu.timing import Clock, Job
from benchmarks.harness import RESULTS, Row, WrongResult, environment, save

#: The part of the time that meta-steps may take; the ops get what is left.
META_STEPS = 0.5


@dataclass
class Results:
    """What was measured so far, in files after every few cases."""

    folder: Path | None
    ceilings: ceilings.Ceilings
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: int = 0

    def gather(self, jobs: Iterator[Job], until: float) -> None:
        """Does the jobs for which there is time; one that fails costs its own rows alone."""
        for number, job in enumerate(jobs):
            if time.monotonic() > until:
                self.left_out += 1
                continue
            try:
                self.rows += job()
                print(".", end="", file=sys.stderr, flush=True)
            except (WrongResult, RuntimeError) as error:
                self.failures.append(f"{type(error).__name__}: {error}"[:300])
                print("F", end="", file=sys.stderr, flush=True)
            if number % 8 == 0:
                self.write()
        self.write()

    def document(self) -> dict[str, object]:
        return {
            "ceilings": self.ceilings.to_json(),
            "left_out": self.left_out,
            "failures": self.failures,
        }

    def write(self) -> None:
        if self.folder is not None:
            path = save("gpu", self.rows, self.folder, **self.document())
            (self.folder / "gpu.md").write_text(report.markdown(json.loads(path.read_text())))


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sample of the cases")
    parser.add_argument("--retune", action="store_true", help="measure the table of backends")
    parser.add_argument("--seconds", type=float, default=600.0, help="to be done in")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: there is no GPU; --device cpu exercises the code")
    clock, now = Clock(options.device), time.monotonic()
    end = now + options.seconds
    if options.retune:
        print(retune.run(clock, end, options.out, tiny=not on_gpu))
        return
    limits = ceilings.measure(clock, tiny=not on_gpu)
    results = Results(options.out if on_gpu else None, limits)
    cases = {"quick": options.quick, "tiny": not on_gpu}
    results.gather(meta_steps.jobs(clock, **cases), now + META_STEPS * options.seconds)
    results.gather(ops.jobs(clock, limits, **cases), end)
    if not on_gpu:
        print("\nexercised on the CPU: these are not times of a GPU, and nothing was saved")
    rows = [row.to_json() for row in results.rows]
    print(report.markdown({"environment": environment(), **results.document(), "rows": rows}))
    if results.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
