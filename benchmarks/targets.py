"""Holds the raw results to their targets: ``python -m benchmarks.targets [--threads N]``.

A target is the least speed-up over the fastest stock way, as the median over the named cases of one
density. Prints every target with what was reached, then every single row below 0.95 of stock, and
exits with 1 if either list has a miss.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import load

DENSITIES = (1.0, 0.5, 0.2, 0.1)
FLOOR = 0.95

Case = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Least median speed-up of the rows of a group whose case matches, by density."""

    group: str
    label: str
    matches: Callable[[Case], bool]
    least: dict[float | None, float]


def conv(
    ops: Collection[str],
    least: tuple[float, ...],
    *,
    sizes: Collection[int],
    channels: int = 64,
    stride: int = 1,
    tasks: int = 1,
    samples: int = 25,
) -> Iterator[Target]:
    """One target an op, over the maps ``sizes``; ``least`` by density, from 1 down."""
    for op in ops:
        fixed = {
            "op": op,
            "tasks": tasks,
            "samples": samples,
            "in_channels": channels,
            "out_channels": channels,
            "stride": stride,
        }
        maps = "/".join(map(str, sizes))
        label = f"{op}, {channels} channels, stride {stride}, T={tasks}, N={samples}, maps {maps}"
        yield Target(
            "ops-conv",
            label,
            lambda case, fixed=fixed: fixed.items() <= case.items() and case["size"] in sizes,
            dict(zip(DENSITIES, least, strict=False)),
        )


def other(group: str, label: str, least: float | dict[float, float], **case: Any) -> Target:
    """The target of the rows with these fields; one number where they have no density."""
    by_density = least if isinstance(least, dict) else {None: least}
    return Target(group, label, lambda found: case.items() <= found.items(), by_density)


PRODUCTS = ("forward", "input gradient")
WEIGHTS = ("weight gradient",)
ALL = (*PRODUCTS, *WEIGHTS)
LARGE = (84, 42, 28, 21, 14, 10)

TARGETS: tuple[Target, ...] = (
    *conv(PRODUCTS, (1.7, 2.6, 4.0, 4.8), sizes=LARGE),
    *conv(WEIGHTS, (1.5, 2.1, 3.2, 3.5), sizes=LARGE),
    *conv(ALL, (2.2, 3.4, 5.0, 6.0), sizes=(42, 32, 16), channels=128),
    *conv(("dense weight gradient",), (1.3,), sizes=(84, 42, 28, 14)),
    *conv(PRODUCTS, (1.3, 2.0, 2.7, 3.2), sizes=(84, 42, 32, 28), stride=2),
    *conv(WEIGHTS, (1.1, 1.5, 2.2, 2.5), sizes=(84, 42, 32, 28), stride=2),
    *conv(PRODUCTS, (0.95, 1.4, 2.1, 2.6), sizes=(21, 16, 14, 11), stride=2),
    *conv(WEIGHTS, (0.95, 1.3, 1.9, 2.2), sizes=(21, 16, 14, 11), stride=2),
    *conv(PRODUCTS, (0.95, 1.2, 1.7, 2.0), sizes=(8, 7, 4), stride=2),
    *conv(WEIGHTS, (0.95, 1.1, 1.6, 1.9), sizes=(8, 7, 4), stride=2),
    *conv(PRODUCTS, (1.1, 1.8, 3.1, 4.2), sizes=(32, 16), channels=128, stride=2),
    *conv(WEIGHTS, (1.0, 1.6, 2.6, 3.4), sizes=(32, 16), channels=128, stride=2),
    *conv(ALL, (0.95, 1.4, 2.1), sizes=(32, 16, 8, 4), stride=2, tasks=4),
    *conv(ALL, (0.95, 1.25, 1.75), sizes=(32, 16, 8, 4), stride=2, tasks=4, samples=5),
    other("ops-block", "block, pooled, forward", 6.0, op="forward", pool=True),
    other("ops-block", "block, not pooled, forward", 6.0, op="forward", pool=False),
    other("ops-block", "block, pooled, both passes", 3.0, op="forward and backward", pool=True),
    other(
        "ops-block", "block, not pooled, both passes", 3.0, op="forward and backward", pool=False
    ),
    other("ops-topk_mask", "top-k mask", {0.5: 10.0}),
    other("meta_steps-maml", "MAML, strided at 28x28", {1.0: 3.0, 0.5: 3.6}, size=28),
    other("meta_steps-maml", "MAML, strided at 32x32", {1.0: 3.0, 0.5: 3.6}, size=32),
    other("meta_steps-maml", "MAML, pooled at 84x84", {1.0: 5.0, 0.5: 5.5}, size=84),
    other("meta_steps-metadock", "MetaDOCK", {1.0: 5.5, 0.5: 7.0}),
    other("adapt-one_task", "one task, strided at 28x28", {1.0: 2.0, 0.5: 3.0, 0.1: 5.0}, size=28),
    other("adapt-one_task", "one task, pooled at 84x84", {1.0: 5.0, 0.5: 6.0, 0.1: 8.0}, size=84),
    other("implicit-meta_gradient", "iMAML meta-gradient, 28x28", 4.0, size=28),
    other("implicit-meta_gradient", "iMAML, strided at 84x84", 4.0, size=84, backbone="strided"),
    other("implicit-meta_gradient", "iMAML, pooled at 84x84", 7.0, size=84, backbone="pooled"),
    other("implicit-head", "convex head, 25 samples", 30.0, samples=25),
    other("implicit-head", "convex head, 125 samples", 10.0, samples=125),
    other("implicit-convex_step", "Convex iMAML meta-step, 1 shot", 10.0, size=28, shots=1),
)


def reached(target: Target, rows: list[dict[str, Any]], density: float | None) -> float | None:
    """The median speed-up of the target's rows of one density; None where nothing was measured."""
    speedups = [
        row["speedup"]
        for row in rows
        if target.matches(row["case"]) and row["case"].get("density") == density
    ]
    return statistics.median(speedups) if speedups else None


def lines() -> Iterator[tuple[str, ...]]:
    """Each target, what was wanted by density, and what was reached on one thread and on two."""
    for target in TARGETS:
        found = []
        for threads in (1, 2):
            document = load(f"{target.group}-{threads}-threads")
            rows = document["rows"] if document else []
            values = [reached(target, rows, density) for density in target.least]
            found.append(", ".join("-" if value is None else f"{value:.1f}" for value in values))
        if any(each.strip("-, ") for each in found):
            yield target.label, ", ".join(f"{least:g}" for least in target.least.values()), *found


def compare(threads: int) -> tuple[Table, bool]:
    """Every target, what was reached, and whether none was missed."""
    table = Table(title=f"{threads} threads: reached (target)")
    table.add_column("target", max_width=70)
    for density in DENSITIES:
        table.add_column(f"density {density:g}", justify="right")
    all_met = True
    for target in TARGETS:
        document = load(f"{target.group}-{threads}-threads")
        rows = document["rows"] if document else []
        cells = {}
        for density, least in target.least.items():
            found = reached(target, rows, density)
            met = found is not None and found >= least
            all_met &= met
            value = "not measured" if found is None else f"{found:.2f}"
            style = "green" if met else "bold red"
            cells[1.0 if density is None else density] = f"[{style}]{value}[/] ({least:g})"
        table.add_row(target.label, *(cells.get(density, "") for density in DENSITIES))
    return table, all_met


def below_floor(threads: int) -> list[tuple[float, dict[str, Any]]]:
    """The rows of ops that are slower than 0.95 of the fastest stock way, slowest first."""
    groups = ("block", "conv", "deep", "depthwise", "moving", "topk_mask")
    documents = [load(f"ops-{group}-{threads}-threads") for group in groups]
    found = [
        (row["speedup"], {**row["case"], "stock": row["best_stock"]})
        for document in documents
        if document
        for row in document["rows"]
        if row["speedup"] < FLOOR
    ]
    return sorted(found, key=lambda entry: entry[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    console = Console(width=140)
    table, all_met = compare(threads)
    console.print(table)
    slow = below_floor(threads)
    console.print(f"{len(slow)} rows of ops below {FLOOR} of stock")
    for speedup, case in slow:
        console.print(f"  {speedup:.2f}  {case}", highlight=False)
    sys.exit(not all_met or bool(slow))


if __name__ == "__main__":
    main()
