"""Writes the measured tables of the documents from raw results: ``python -m benchmarks.tables``.

With ``--check`` nothing is written, and the exit code says whether they are up to date.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import study_tables, targets
from benchmarks.harness import RESULTS, load
from benchmarks.markdown import markdown
from metasparse_ext.training import Run, evaluation, metrics

README = RESULTS.parents[1] / "README.md"
BENCHMARKS = RESULTS.parents[1] / "docs" / "benchmarks.md"
PERFORMANCE = RESULTS.parents[1] / "docs" / "performance.md"
STUDIES = RESULTS.parents[1] / "docs" / "studies.md"
_BLOCK = re.compile(r"(<!-- tables -->\n).*?(<!-- end of tables -->)", re.DOTALL)
DENSITIES = (1.0, 0.5, 0.2, 0.1)


def training() -> Iterator[str]:
    """The runs that were kept, by their evaluation on test classes."""
    folders = sorted(path.parent for path in RESULTS.glob("*/evaluation-test.json"))
    rows = []
    for run in map(Run, folders):
        found = evaluation.kept(run)
        numbers = found.numbers
        rows.append(
            (
                f"`{run.folder.name}`",
                found.setting,
                f"{100 * numbers['accuracy']:.2f} ± {100 * numbers['interval']:.2f} %",
                f"{100 * numbers['active']:.1f} %",
                f"{numbers['macs'] / 1e6:.2f} M",
                str(found.adapt_steps),
                str(found.iteration),
                f"{_seconds(metrics.read(run.metrics_path)) / 60:.0f}",
            )
        )
    if rows:
        head = ("run", "test", "accuracy", "active kernels", "MACs")
        head += ("adapt steps", "iteration", "minutes")
        yield markdown(
            "Training on one core of a CPU; 600 test tasks, 95 % interval, transductive. The "
            "evaluated checkpoint, chosen on validation, is that of the iteration named; minutes "
            "are those of all training steps. Configuration and metrics of every "
            "run lie in `benchmarks/results/`.",
            head,
            rows,
        )


def _seconds(records: list[dict[str, Any]]) -> float:
    """What the steps of a run took: processor time, or in older runs the time that passed."""
    if "elapsed" in records[-1]:
        return records[-1]["elapsed"]
    steps = [record for record in records if record["kind"] == "train"]
    ends = [record["iteration"] for record in steps]
    return sum(
        record["seconds"] * (end - start)
        for record, start, end in zip(steps, [0, *ends], ends, strict=False)
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
                f"{row['group']}, {_network(case)}",
                f"{case['density']:g}",
                stock,
                f"{row['stock'][stock]['median']:.3f}",
                f"{row['ours']['median']:.3f}",
                f"{row['speedup']:.1f}",
            )
        )
    head = ("meta-step", "density", "peer", "peer s", "ours s", "times faster")
    yield markdown(_measured("Meta-steps of four tasks", documents[0]), head, rows)


_SETTINGS = {
    "2 threads": "2-threads",
    "1 thread": "1-threads",
    "2 threads, the system's allocator": "2-threads-system-allocator",
}


def settings() -> Iterator[str]:
    """Meta-steps in several settings, beside each other."""
    names = ("meta_steps-maml", "meta_steps-metadock")
    found = {
        title: [document for name in names if (document := load(f"{name}-{suffix}"))]
        for title, suffix in _SETTINGS.items()
    }
    found = {title: documents for title, documents in found.items() if documents}
    lines: dict[tuple[str, ...], str] = {}
    for title, documents in found.items():
        for row in (row for document in documents for row in document["rows"]):
            case = row["case"]
            key = (f"{row['group']}, {_network(case)}", f"{case['density']:g}", title)
            stock = row["stock"][row["best_stock"]]["median"]
            lines[key] = f"{row['speedup']:.1f} ({stock:.2f} to {row['ours']['median']:.2f} s)"
    keys = list(dict.fromkeys(key[:2] for key in lines))
    rows = [(*key, *(lines.get((*key, title), "") for title in found)) for key in keys]
    if rows:
        title = (
            "Meta-steps of four tasks, times faster than the fastest peer; both sides keep the "
            "memory that they free, but where a column names the allocator that a peer's users have"
        )
        first = next(iter(found.values()))[0]
        head = ("meta-step", "density", *found)
        yield markdown(_measured(title, first, threads=False), head, rows)


def one_task() -> Iterator[str]:
    document = load("adapt-one_task-2-threads")
    if document is None:
        return
    lines: dict[str, dict[float, str]] = {}
    for row in document["rows"]:
        stock, ours = row["stock"][row["best_stock"]]["median"], row["ours"]["median"]
        cell = f"{row['speedup']:.1f} ({1e3 * stock:.0f} to {1e3 * ours:.0f} ms)"
        lines.setdefault(_network(row["case"]), {})[row["case"]["density"]] = cell
    densities = list(next(iter(lines.values())))
    head = ("5-way 5-shot, 10 steps of first order", *(f"density {d:g}" for d in densities))
    title = "One task, adapted to and classified, times faster than stock PyTorch with masks"
    rows = [(network, *cells.values()) for network, cells in lines.items()]
    yield markdown(_measured(title + " multiplied in", document), head, rows)


_IMPLICIT = {
    "meta_gradient": lambda case: f"iMAML meta-gradient, 5 CG steps, {_network(case)}",
    "head": lambda case: f"exact head, {case['samples']} samples of {case['features']} features",
    "convex_step": lambda case: f"Convex iMAML meta-step, {_network(case)}, {case['shots']}-shot",
}


def implicit() -> Iterator[str]:
    documents = {group: load(f"implicit-{group}-2-threads") for group in _IMPLICIT}
    documents = {group: document for group, document in documents.items() if document}
    rows = []
    for group, document in documents.items():
        for row in document["rows"]:
            stock, what = row["best_stock"], _IMPLICIT[group](row["case"])
            seconds = (row["stock"][stock]["median"], row["ours"]["median"])
            times = (f"{1e3 * each:.3g}" for each in seconds)
            rows.append((what, stock, *times, f"{row['speedup']:.1f}"))
    if rows:
        head = ("four tasks", "peer", "peer ms", "ours ms", "times faster")
        title = _measured("Implicit differentiation", next(iter(documents.values())))
        yield markdown(title, head, rows)


def _network(case: dict[str, Any]) -> str:
    size = f"{case['size']}x{case['size']}x{case['channels']}"
    return f"{case['backbone']} Conv4-{case['width']} at {size}"


def ops() -> Iterator[str]:
    document = load("ops-conv-1-threads")
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


def deep() -> Iterator[str]:
    document = load("ops-deep-1-threads")
    if document is None:
        return
    lines = []
    for channels, op in product((128, 256, 512), ("forward", "input gradient", "weight gradient")):
        rows = [r for r in document["rows"] if r["case"]["out_channels"] == channels]
        found = [[r for r in rows if _is(r, op, density)] for density in (1.0, 0.5, 0.1)]
        spread = (f"{_median(each)} (least {_least(each)})" for each in found)
        lines.append((f"{channels} channels: {op}", *spread))
    head = ("maps of 8, 4 and 2", *(f"density {d:g}" for d in (1.0, 0.5, 0.1)))
    title = (
        "Many channels on few pixels, one and four tasks of 5 and 25 images, both strides: median"
    )
    yield markdown(_measured(title, document), head, lines)


def moving() -> Iterator[str]:
    document = load("ops-moving-1-threads")
    if document is None:
        return
    lines = []
    for row in document["rows"]:
        case, more = row["case"], row["more"]
        seconds = (more["all kernels"], more["a mask that stays"], row["ours"]["median"])
        times = (f"{1e6 * each:.0f}" for each in seconds)
        stock = row["stock"][row["best_stock"]]["median"]
        layer = f"{case['in_channels']} to 64, {case['size']} pixels: {case['op']}"
        lines.append((layer, f"{1e6 * stock:.0f}", *times))
    head = ("four tasks, microseconds", "fastest stock", "all kernels", "half", "half, moving")
    title = "Half of the kernels, with one mask and with another one at every call"
    yield markdown(_measured(title, document), head, lines)


def depthwise() -> Iterator[str]:
    document = load("ops-depthwise-1-threads")
    if document is None:
        return
    lines: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in document["rows"]:
        case = row["case"]
        layer = (
            f"{case['channels']} channels, {case['size']} pixels, {case['kernel']}x{case['kernel']}"
        )
        layer += ", stride 2" if case["stride"] == 2 else ""
        lines.setdefault(layer, {}).setdefault(case["op"], []).append(row)
    head = ("depthwise convolution", *next(iter(lines.values())))
    rows = [
        (layer, *(f"{_median(each)} (least {_least(each)})" for each in found.values()))
        for layer, found in lines.items()
    ]
    title = (
        "Times faster than PyTorch, in a loop over the tasks or with their channels side by side "
        "before the clock starts; one task of 25 images, four of 5 and of 25: median"
    )
    yield markdown(_measured(title, document), head, rows)


def networks() -> Iterator[str]:
    document = load("networks-step-1-threads")
    if document is None:
        return
    lines: dict[str, list[str]] = {}
    for row in document["rows"]:
        case, memory = row["case"], row["more"]["memory"]
        name = f"{case['network']}, {case['size']} pixels, T = {case['tasks']}"
        cells = lines.setdefault(name, [f"{memory['ours']}, {memory['loop']} MB"])
        cells.append(f"{row['speedup']:.2f}")
    densities = (f"density {d:g}" for d in DENSITIES)
    head = ("one inner step", "peak memory: ours, loop", "without masks", *densities)
    title = (
        "Networks of `torch.nn`, as they are and through `sparsify`, times faster than a loop over "
        "tasks"
    )
    rows = [(name, *cells) for name, cells in lines.items()]
    yield markdown(_measured(title, document), head, rows)


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


def _least(rows: list[dict[str, Any]]) -> str:
    return f"{min(row['speedup'] for row in rows):.2f}"


def _median(rows: list[dict[str, Any]]) -> str:
    return f"{statistics.median(row['speedup'] for row in rows):.2f}" if rows else ""


def _measured(what: str, document: dict[str, Any], *, threads: bool = True) -> str:
    where = document["environment"]
    count = "1 thread" if int(where["threads"]) == 1 else f"{where['threads']} threads"
    parts = [where["processor"], where["cpu"], *([count] if threads else [])]
    return f"{what}; {', '.join(parts)}, torch {where['torch']}."


def wanted() -> Iterator[str]:
    document = load("ops-conv-1-threads")
    if document is not None:
        head = ("times faster than the fastest stock way", "wanted", "1 thread", "2 threads")
        title = "By density, from 1 down to .5, .2 and .1; median over the maps that are named"
        yield markdown(_measured(title, document, threads=False), head, list(targets.lines()))


DOCUMENTS: dict[Path, tuple[Callable[[], Iterator[str]], ...]] = {
    README: (meta_steps, one_task, training),
    BENCHMARKS: (settings, networks, implicit, ops, moving, deep, depthwise),
    PERFORMANCE: (wanted,),
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
