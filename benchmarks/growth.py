"""How time and memory of a meta-step grow: ``python -m benchmarks.growth [--quick] [--threads N]``.

MAML, second order, on the strided Conv-4 of 64 channels at 28x28, four tasks of five classes, one
image each, five inner steps; one of inner steps, tasks, channels, image size and density is varied
at a time. Beside ours: torch.func.vmap over the tasks, and the loops over them of learn2learn,
higher and TorchOpt, as far as they are installed, and of torch.autograd. Sides are timed in turns;
for its peak of resident memory each has a process of its own. All sides must give one meta-gradient
in float64 first. Writes ``results/growth-N-threads.json`` and ``docs/growth.png``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import peers
from benchmarks.gpu.peers import vmap_maml
from benchmarks.harness import RESULTS, environment, fair_process, interleave, verify
from benchmarks.meta_steps import BOUND, MamlStep
from metasparse_ext.algorithms import MAML

BASE = MamlStep("strided", 28, 1, 64, 1.0)
AXES: Mapping[str, tuple[float, ...]] = {
    "steps": (1, 2, 4, 8, 16, 32),
    "tasks": (1, 2, 4, 8, 16, 32, 64),
    "width": (32, 64, 128, 256),
    "size": (28, 42, 84),
    "density": (1.0, 0.5, 0.2, 0.1, 0.05),
}
LABELS = {"steps": "inner steps", "width": "channels", "size": "image size"}
OURS = "metasparse_ext"
PICTURE = RESULTS.parents[1] / "docs" / "growth.png"

Step = Callable[[], list[Tensor]]


def sides(case: MamlStep, dtype: torch.dtype) -> dict[str, Step]:
    """A meta-gradient by everyone who computes it, in the order of the network's parameters."""
    net, batch = case.network().to(dtype), case.batch(dtype)
    twin = peers.stock_twin(net).to(dtype)
    learner = MAML(net, inner_lr=case.inner_lr, inner_steps=case.steps)

    def ours() -> list[Tensor]:
        learner.zero_grad(set_to_none=True)
        learner.meta_backward(batch)
        return [p.grad for p in learner.parameters()]

    def by(peer: peers.Maml) -> Step:
        return lambda: peer(twin, batch, case.inner_lr, case.steps)

    loops = {name: by(peer) for name, peer in peers.installed_maml().items()}
    return {OURS: ours, "torch.func.vmap": by(vmap_maml), **loops}


def check(case: MamlStep) -> None:
    """Raises ``WrongResult`` where a side's meta-gradient differs from ours, in float64."""
    expected, *others = (
        torch.cat([g.flatten() for g in step()]) for step in sides(case, torch.float64).values()
    )
    for other in others:
        verify(str(case), other, expected, BOUND)


def peak_mb(case: MamlStep, side: str) -> float:
    """How many MB the peak of resident memory in a meta-step is above what was there before."""
    step = sides(case, torch.float32)[side]
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def points(quick: bool) -> Iterator[tuple[str, MamlStep]]:
    for axis, values in AXES.items():
        for value in values[:1] if quick else values:
            yield axis, replace(BASE, **{axis: value})


def in_own_process(case: MamlStep, side: str, threads: int) -> float:
    """:func:`peak_mb` of a process that does nothing else."""
    task = json.dumps([asdict(case), side])
    command = [sys.executable, "-m", "benchmarks.growth", "--threads", str(threads)]
    done = subprocess.run([*command, "--one", task], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{side}, {case}: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def rows(threads: int, quick: bool, budget: float) -> Iterator[dict[str, Any]]:
    """A line a point and side."""
    known: dict[MamlStep, list[dict[str, Any]]] = {}
    for axis, case in points(quick):
        if case not in known:
            timings = interleave(sides(case, torch.float32), budget=budget, least=3, most=10)
            known[case] = [
                {
                    "side": name,
                    "seconds": timing.median,
                    "peak_mb": in_own_process(case, name, threads),
                }
                for name, timing in timings.items()
            ]
        for found in known[case]:
            yield {"axis": axis, "value": getattr(case, axis), **found}
        print(".", end="", file=sys.stderr, flush=True)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Seconds above, memory below, an axis a column; both logarithmic."""
    figure = Figure(figsize=(15, 6), layout="constrained")
    panels = figure.subplots(2, len(AXES), sharex="col")
    names = list(dict.fromkeys(row["side"] for row in found))
    for column, axis in enumerate(AXES):
        for row, key in enumerate(("seconds", "peak_mb")):
            panel = panels[row, column]
            for name in names:
                line = [r for r in found if r["axis"] == axis and r["side"] == name]
                panel.plot([r["value"] for r in line], [r[key] for r in line], "o-", label=name)
            panel.set(xscale="log", yscale="log")
            panel.grid(visible=True, which="both", alpha=0.2)
            values = sorted({r["value"] for r in found if r["axis"] == axis})
            panel.set_xticks(values, [f"{value:g}" for value in values])
            panel.minorticks_off()
        panels[1, column].set_xlabel(LABELS.get(axis, axis))
    panels[0, 0].set_ylabel("seconds a meta-step")
    panels[1, 0].set_ylabel("peak memory, MB")
    panels[0, 0].legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one point an axis, nothing is kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    fair_process(options.threads)
    if options.one is not None:
        case, side = json.loads(options.one)
        print(peak_mb(MamlStep(**case), side))
        return
    for axis, values in AXES.items():
        check(replace(BASE, tasks=2, **{} if axis == "tasks" else {axis: values[0]}))
    found = list(rows(options.threads, options.quick, 0.1 if options.quick else 3.0))
    print(file=sys.stderr)
    if options.quick:
        print(json.dumps(found, indent=1))
        return
    path = RESULTS / f"growth-{options.threads}-threads.json"
    path.write_text(json.dumps({"environment": environment(), "rows": found}, indent=1) + "\n")
    draw(found, PICTURE)
    print(f"raw results: {path}\npicture: {PICTURE}")


if __name__ == "__main__":
    main()
