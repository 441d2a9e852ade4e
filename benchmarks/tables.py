"""Writes the measured tables of the documents from raw results: ``python -m benchmarks.tables``.

With ``--check`` nothing is written, and the exit code says whether they are up to date.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import study_tables
from benchmarks.harness import RESULTS, load
from benchmarks.markdown import markdown
from metasparse_ext.training import results
from metasparse_ext.training.run import Run

README = RESULTS.parents[1] / "README.md"
STUDIES = RESULTS.parents[1] / "docs" / "studies.md"
_BLOCK = re.compile(r"(<!-- tables -->\n).*?(<!-- end of tables -->)", re.DOTALL)
DENSITIES = (1.0, 0.5, 0.2, 0.1)


def training() -> Iterator[str]:
    """The runs that were kept, by their evaluation on test classes."""
    folders = sorted(path.parent for path in RESULTS.glob("*/evaluation-test.json"))
    rows = []
    for folder in folders:
        found = results.kept(Run(folder))
        numbers = found.numbers
        rows.append(
            (
                f"`{folder.name}`",
                found.setting,
                f"{100 * numbers['accuracy']:.2f} ± {100 * numbers['interval']:.2f} %",
                f"{100 * numbers['active']:.1f} %",
                f"{numbers['macs'] / 1e6:.2f} M",
                str(found.adapt_steps),
                str(found.iteration),
                f"{found.seconds:.3f}",
            )
        )
    if rows:
        head = ("run", "test", "accuracy", "active kernels", "MACs")
        head += ("adapt steps", "iterations", "s/iteration")
        yield markdown(
            "Training on one core of a CPU; 600 test tasks, 95 % interval, transductive. "
            "Configuration and metrics of every iteration lie in `benchmarks/results/`.",
            head,
            rows,
        )


def meta_steps() -> Iterator[str]:
    documents = [load(f"meta_steps-{group}-2-threads") for group in ("maml", "metadock")]
    documents = [document for document in documents if document]
    if not documents:
        return
    rows = []
    for row in (row for document in documents for row in document["rows"]):
        case, stock = row["case"], row["best_stock"]
        rows.append(
            (
                f"{row['group']}, {case['backbone']} Conv4-{case['width']} at {case['size']}x"
                f"{case['size']}x{case['channels']}",
                f"{case['density']:g}",
                stock,
                f"{row['stock'][stock]['median']:.3f}",
                f"{row['ours']['median']:.3f}",
                f"{row['speedup']:.1f}",
            )
        )
    head = ("meta-step", "density", "peer", "peer s", "ours s", "times faster")
    yield markdown(_measured("Meta-steps of four tasks", documents[0]), head, rows)


def ops() -> Iterator[str]:
    document = load("ops-conv-2-threads")
    if document is None:
        return
    rows = document["rows"]
    lines = []
    for label, belongs in _conv_groups().items():
        for op in ("forward", "input gradient", "weight gradient"):
            cells = [
                _median([r for r in rows if belongs(r["case"]) and _is(r, op, density)])
                for density in DENSITIES
            ]
            lines.append((f"{label}: {op}", *cells))
    head = ("masked 3x3 convolution", *(f"density {d:g}" for d in DENSITIES))
    title = _measured(
        "Times faster than the fastest stock way (median over the maps; a premultiplied weight in "
        "either memory format, or loop, grouped and vmap for four tasks)",
        document,
    )
    yield markdown(title, head, lines)


def _is(row: dict[str, Any], op: str, density: float) -> bool:
    return row["case"]["op"] == op and row["case"]["density"] == density


def _conv_groups() -> dict[str, Callable[[dict[str, Any]], bool]]:
    def group(tasks: int, channels: int, stride: int, sizes: set[int]) -> Callable[..., bool]:
        return lambda case: (
            case["tasks"] == tasks
            and case["samples"] == 25
            and case["in_channels"] == case["out_channels"] == channels
            and case["stride"] == stride
            and case["size"] in sizes
        )

    return {
        "64 channels, maps 84 to 10": group(1, 64, 1, {84, 42, 28, 21, 14, 10}),
        "128 channels, maps 42, 32, 16": group(1, 128, 1, {42, 32, 16}),
        "stride 2, 64 channels, maps 84 to 28": group(1, 64, 2, {84, 42, 32, 28}),
        "stride 2, 64 channels, maps 21 to 11": group(1, 64, 2, {21, 16, 14, 11}),
        "stride 2, 64 channels, maps 8 to 4": group(1, 64, 2, {8, 7, 4}),
        "stride 2, four tasks, maps 32 to 4": group(4, 64, 2, {32, 16, 8, 4}),
    }


def _median(rows: list[dict[str, Any]]) -> str:
    return f"{statistics.median(row['speedup'] for row in rows):.2f}" if rows else ""


def _measured(what: str, document: dict[str, Any]) -> str:
    where = document["environment"]
    return f"{what}; {where['processor']}, {where['threads']} threads, torch {where['torch']}."


DOCUMENTS: dict[Path, tuple[Callable[[], Iterator[str]], ...]] = {
    README: (training, meta_steps, ops),
    STUDIES: (study_tables.learners, study_tables.tickets, study_tables.mixtures),
}


def render(path: Path) -> str:
    """A document with its tables made anew."""
    text = "\n".join(block for make in DOCUMENTS[path] for block in make())
    return _BLOCK.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if stale")
    if parser.parse_args().check:
        sys.exit(any(render(path) != path.read_text() for path in DOCUMENTS))
    for path in DOCUMENTS:
        path.write_text(render(path))


if __name__ == "__main__":
    main()
