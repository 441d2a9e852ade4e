"""The tables of a run, from its raw numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from benchmarks.tables import markdown as table

Record = dict[str, Any]


def markdown(document: Record) -> str:
    """Everything that was measured, with the ceilings and what was left out or failed first."""
    return "\n".join(_parts(document))


def _parts(document: Record) -> Iterator[str]:
    where, limits = document["environment"], document["ceilings"]
    yield ", ".join(where[name] for name in ("torch", "cuda", "revision", "time")) + "\n"
    yield table("Ceilings", ("limit", "measured"), [(k, f"{v:.3g}") for k, v in limits.items()])
    yield f"{document['left_out']} cases were left out for lack of time.\n"
    yield from (f"Failed: {failure}\n" for failure in document["failures"])
    rows = document["rows"]
    for group, make in {"meta_step": _meta_steps, "conv": _convs}.items():
        if members := [row for row in rows if row["group"] == group]:
            yield make(members)
    if others := [row for row in rows if row["group"] in ("block", "topk_mask")]:
        head = ("op", "case", "ours, us", "stock, us", "times faster")
        yield table("Other ops", head, [(row["group"], _case(row), *_pair(row)) for row in others])


def _meta_steps(rows: list[Record]) -> str:
    lines = []
    for row in rows:
        captured = row["ours"]["median"]
        others = "; ".join(f"{k} {1e3 * t['median']:.3g}" for k, t in row["stock"].items())
        peak = row["more"]["peak_bytes"]
        lines.append(
            (
                f"{row['case']['learner']}, T={row['case']['tasks']}, {row['case']['size']}x"
                f"{row['case']['size']}, {row['case']['precision']}",
                f"{1e3 * captured:.3g}",
                f"{1e3 * row['more']['eager']['median']:.3g}",
                others,
                "; ".join(f"{t['median'] / captured:.1f}" for t in row["stock"].values()),
                f"{peak['captured'] / 2**20:.0f}",
                row["more"]["not_captured_because"] or "",
            )
        )
    head = ("meta-step", "captured, ms", "eager, ms", "others, ms", "times faster", "peak MiB")
    return table("Meta-steps", (*head, "not captured because"), lines)


def _convs(rows: list[Record]) -> str:
    def shape(row: Record) -> dict[str, Any]:
        return {name: value for name, value in row["case"].items() if name != "density"}

    lines = []
    for case, members in _grouped(rows, shape):
        stock = members[0]["best_stock"]
        cells = [
            f"{row['speedup']:.2f} ({1e6 * row['ours']['median']:.3g}; "
            f"{row['more']['tflops']:.3g}, {row['more']['tbs']:.2g})"
            for row in members
        ]
        name = ", ".join(str(value) for value in case.values())
        lines.append((name, f"{stock} {1e6 * members[0]['stock'][stock]['median']:.3g}", *cells))
    densities = [f"density {row['case']['density']:g}" for row in _grouped(rows, shape)[0][1]]
    title = (
        "Masked 3x3 convolutions: times faster than the fastest stock way (ours, us; TFLOP/s of "
        f"active kernels, TB/s). Cases: {', '.join(shape(rows[0]))}"
    )
    return table(title, ("case", "fastest stock, us", *densities), lines)


def _grouped(
    rows: list[Record], key: Callable[[Record], dict[str, Any]]
) -> list[tuple[dict[str, Any], list[Record]]]:
    return [(case, list(members)) for case, members in groupby(rows, key=key)]


def _case(row: Record) -> str:
    return ", ".join(f"{value}" for value in row["case"].values())


def _pair(row: Record) -> tuple[str, str, str]:
    stock = row["stock"][row["best_stock"]]["median"]
    return f"{1e6 * row['ours']['median']:.3g}", f"{1e6 * stock:.3g}", f"{row['speedup']:.2f}"
