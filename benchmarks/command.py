"""The command line and the table that the CPU benchmarks share."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import ALLOCATORS, Row, WrongResult, fair_process, save


@dataclass(frozen=True)
class Group:
    """Cases of one kind: ``grid(quick)`` yields them, ``run(case, seconds)`` measures one."""

    run: Callable[[Any, float], Row]
    grid: Callable[[bool], Iterator[Any]]


def run_benchmark(
    name: str,
    description: str,
    groups: dict[str, Group],
    *,
    seconds: float,
    quick_seconds: float,
    passes: int = 1,
) -> None:
    """Measures the groups that are asked for, prints a table of each and saves its raw rows.

    A case whose result is wrong has no row; all such are named at the end, and the process exits
    with 1.

    Args:
        name: Of the benchmark; a group's rows go to ``results/NAME-GROUP-N-threads.json``.
        seconds: For the timing of one case; ``quick_seconds`` with ``--quick``, which saves none.
        passes: Through all cases of a group, which share the seconds: a machine that is slow for a
            minute, for one side more than for the other, spoils one pass of a case. The pass of
            median speed-up counts. One with ``--quick``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a sample of the cases, not saved")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--allocator",
        choices=ALLOCATORS,
        default="kept",
        help="what both sides do with freed memory; results of others are saved beside",
    )
    parser.add_argument("--only", choices=tuple(groups), help="one group of cases")
    options = parser.parse_args()
    fair_process(options.threads, options.allocator)
    suffix = "" if options.allocator == "kept" else f"-{options.allocator}-allocator"
    if options.quick:
        seconds, passes = quick_seconds, 1
    console, wrong = Console(width=140), []
    for label, group in groups.items():
        if options.only not in (None, label):
            continue
        cases = list(group.grid(options.quick))
        found: list[list[Row]] = [[] for _ in cases]
        for case, rows_of_case in [*zip(cases, found, strict=True)] * passes:
            try:
                rows_of_case.append(group.run(case, seconds / passes))
            except WrongResult as error:
                wrong.append(str(error))
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        rows = [_median_pass(rows_of_case) for rows_of_case in found if rows_of_case]
        console.print(table(label, rows))
        console.print(_summary(rows))
        if not options.quick:
            file = f"{name}-{label}-{options.threads}-threads{suffix}"
            console.print(f"raw results: {save(file, rows)}")
    if wrong:
        sys.exit("\n".join(["wrong results:", *wrong]))


def _median_pass(rows: list[Row]) -> Row:
    """The row of median speed-up (the lower of two), which also names those of all passes."""
    speedups = [row.speedup for row in rows]
    row = sorted(rows, key=lambda row: row.speedup)[(len(rows) - 1) // 2]
    return replace(row, more={**row.more, "speedups_of_passes": speedups})


def _heading(density: float | str | None) -> str:
    if density is None:
        return "without masks"
    return "speed-up" if density == "" else f"density {density}"


def table(title: str, rows: list[Row]) -> Table:
    """One line a case without its density; by density beside each other, times faster and ours."""
    made = Table(title=f"{title}: times faster than the fastest stock way (ours, ms)")
    fields = [name for name in rows[0].case if name != "density"]
    densities = list(dict.fromkeys(row.case.get("density", "") for row in rows))
    for field in fields:
        made.add_column(field.replace("_", " "), justify="right")
    made.add_column("fastest stock", justify="right")
    for density in densities:
        made.add_column(_heading(density), justify="right")
    for key, members in groupby(rows, key=lambda row: [row.case[name] for name in fields]):
        line = {row.case.get("density", ""): row for row in members}
        cells = [_cell(line[d]) if d in line else "" for d in densities]
        stock = "/".join(dict.fromkeys(row.best_stock for row in line.values()))
        made.add_row(*map(str, key), stock, *cells)
    return made


def _cell(row: Row) -> str:
    return f"{row.speedup:.2f} ({1e3 * row.ours.median:.3g})"


def _summary(rows: list[Row]) -> str:
    speedups = [row.speedup for row in rows]
    return (
        f"{len(rows)} rows; slowest {min(speedups):.2f}, median {statistics.median(speedups):.2f}"
    )
