"""How good the choice of an algorithm is: ``python -m benchmarks.tune [--quick] [--compare FILE]``.

Times every algorithm that serves a masked 3x3 convolution, on one thread, and the fastest stock
way, over the shapes of few-shot networks; each result is verified first. Prints, for every shape
and density, the algorithm that the rules of csrc/cpu/conv/heuristics.h choose beside the fastest,
and saves all times under ``results/tune-ISA.json`` (METASPARSE_CPU_ISA=avx2 tunes for that).

A rule has to serve every processor. With ``--compare`` the times of other machines, saved by
earlier runs, are read too: for every shape the algorithm is named whose worst ratio to the fastest,
over all machines, is least.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import metasparse_ext as ms
from benchmarks.harness import Row, fair_process, interleave, save, verify
from benchmarks.ops import CONV_OPS, DENSITIES, Conv, definition, our_conv, stock_conv

# The largest error of an algorithm relative to the largest entry, see docs/kernels.md.
BOUND = 1e-5
# A choice that costs more than this over the fastest algorithm is named.
TOLERATED = 1.05

ALGORITHMS = ("direct", "few_channels", "winograd2", "winograd3", "winograd4", "winograd5")
ALGORITHMS += ("polyphase2", "polyphase3")

Times = Mapping[str, float]


def shapes(quick: bool) -> Iterator[Conv]:
    """First layers, then layers of 32 to 512 channels; the density is left to the caller."""
    first = ((1, 28), (3, 32), (3, 84), (5, 32), (7, 32))
    inner = ((64, 42), (64, 21), (64, 10), (64, 7), (64, 4), (64, 2), (128, 16), (128, 4))
    inner += ((32, 42), (32, 10), (256, 8), (256, 4), (512, 4), (512, 2), (512, 1))
    if quick:
        first, inner = first[1:2], ((16, 8),)
    for op in CONV_OPS:
        for stride in (1, 2):
            for samples in (5,) if quick else (5, 25):
                for channels, size in first:
                    if op != "input gradient":
                        yield Conv(op, 4, samples, channels, 64, size, stride, 1.0)
                for channels, size in inner:
                    yield Conv(op, 4, samples, channels, channels, size, stride, 1.0)


def measure(case: Conv, budget: float) -> Row:
    """The times of a call by algorithm; ``ours`` is that of the choice."""
    x, weight, mask, grad = case.tensors()
    effective = weight * mask[..., None, None]
    expected = definition(case, x.double(), effective.double(), grad.double())
    if case.op == "weight gradient":
        expected = expected * mask[..., None, None]
    call = our_conv(case, x, weight, mask, grad)
    chosen = _chosen(case, x, weight, mask)
    error, variants = 0.0, {}
    for name in dict.fromkeys((*ALGORITHMS, chosen)):
        if name == "library":
            continue
        try:
            with ms.backend(name):
                error = max(error, verify(f"{name}, {case}", call(), expected, BOUND))
        except ValueError:  # it does not serve this call
            continue
        variants[name] = lambda name=name: _forced(name, call)
    stock = dict(stock_conv(case, x, effective, grad))
    times = interleave({**variants, **stock}, budget=budget, least=5)
    library = min((times[name] for name in stock), key=lambda timing: timing.median)
    ours = {name: times[name] for name in variants} | {"library": library}
    return Row("tune", asdict(case), error, ours[chosen], ours, {"chosen": chosen})


def _forced(name: str, call) -> object:
    with ms.backend(name):
        return call()


def _chosen(case: Conv, x, weight, mask) -> str:
    """The rules' choice, of the op that is asked for."""
    found = {e.op: e for e in ms.explain(x, weight, mask, case.stride, 1)}
    return found[case.op].algorithm


def loss(times: Times, name: str) -> float:
    """How many times slower an algorithm is than the fastest."""
    return times[name] / min(times.values())


def safest(machines: list[Times]) -> str:
    """The algorithm whose worst ratio to the fastest of each machine is least."""
    known = set.intersection(*(set(times) for times in machines))
    return min(sorted(known), key=lambda name: max(loss(times, name) for times in machines))


def by_case(rows: list[dict[str, Any]]) -> dict[tuple, Times]:
    """Median seconds by algorithm, by the case's fields."""
    return {
        tuple(row["case"].values()): {k: t["median"] for k, t in row["stock"].items()}
        for row in rows
    }


def report(rows: list[dict[str, Any]], others: list[dict[tuple, Times]]) -> tuple[Table, list[str]]:
    """A line a shape, a column a density; and what the rules lose, by choice and better one."""
    made = Table(title="chosen, and how many times slower than the fastest, which is named")
    for name in ("op", "channels", "map", "stride", "samples"):
        made.add_column(name, justify="right")
    lines: dict[tuple, dict[float, str]] = defaultdict(dict)
    losses: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        case, chosen = row["case"], row["more"]["chosen"]
        key = tuple(case.values())
        machines = [by_case([row])[key], *(times[key] for times in others if key in times)]
        better = safest(machines)
        lost = max(loss(times, chosen) / loss(times, better) for times in machines)
        shape = (case["op"], case["in_channels"], case["size"], case["stride"], case["samples"])
        cell = chosen
        if lost > TOLERATED:
            cell = f"[bold red]{chosen} {lost:.2f}, {better}[/]"
            losses[chosen, better].append(lost)
        lines[shape][case["density"]] = cell
    for density in dict.fromkeys(row["case"]["density"] for row in rows):
        made.add_column(f"density {density:g}")
    for shape, cells in lines.items():
        made.add_row(*map(str, shape), *cells.values())
    words = [
        f"{chosen} instead of {better}: {len(found)} calls, up to {max(found):.2f} times slower"
        for (chosen, better), found in sorted(losses.items(), key=lambda item: -max(item[1]))
    ]
    return made, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few shapes, not saved")
    parser.add_argument("--seconds", type=float, default=0.4, help="for one call's algorithms")
    parser.add_argument("--compare", type=Path, action="append", default=[], metavar="FILE")
    options = parser.parse_args()
    fair_process(1)
    seconds = 0.02 if options.quick else options.seconds
    others = [by_case(json.loads(path.read_text())["rows"]) for path in options.compare]
    rows: list[Row] = []
    for shape in shapes(options.quick):
        rows += [measure(replace(shape, density=d), seconds) for d in DENSITIES]
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    made, words = report([row.to_json() for row in rows], others)
    console = Console(width=180)
    console.print(made)
    console.print("\n".join(words) or "the rules lose nothing", markup=False)
    if not options.quick:
        name = f"tune-{ms.info()['cpu']}"
        console.print(f"raw results: {save(name, rows)}")


if __name__ == "__main__":
    main()
