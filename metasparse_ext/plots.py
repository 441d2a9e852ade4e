"""Figures of runs: kernels in use, accuracy against multiply-accumulates, learning curves."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from metasparse_ext import _atomic as atomic
from metasparse_ext._arguments import (
    refuse,
    require,
    require_choice,
    require_mapping,
    require_path,
    require_text,
    require_type,
    shown,
)
from metasparse_ext._records import check_fields, check_record

# Okabe and Ito's palette: eight colours that every kind of colour vision tells apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# What a learning curve may be drawn against, and how its axis is called.
_ABSCISSAE = {"iteration": "meta-iteration", "elapsed": "processor seconds"}
_ALWAYS, _SOMETIMES, _NEVER = "#0072B2", "#E69F00", "#ECECEC"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Point:
    """One network in :func:`accuracy_against_macs`: accuracies in [0, 1], MACs per image.

    Attributes:
        measure: What ``accuracy`` is, if not that: the name of a metric or of a loss.
    """

    label: str
    macs: float
    accuracy: float
    interval: float
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        check_fields(
            self, {"macs": {"least": 0}, "interval": {"least": 0}, "measure": {"empty": False}}
        )


def kernel_usage(
    usage: Mapping[str, ArrayLike], path: str | Path, *, title: str | None = None
) -> None:
    """Draws which kernels are always, sometimes and never used, layer by layer.

    Args:
        usage: For every layer, the fraction of tasks (O, I) in which each kernel is active.
        path: The picture to write; its suffix gives the format.
        title: Title of the figure.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If there is no layer, or a layer is not a matrix of fractions.
    """
    require_mapping("kernel_usage", "usage", usage)
    path = _picture("kernel_usage", path, title)
    require(bool(usage), "kernel_usage", "usage", "of at least one layer", usage)
    layers = {name: _fractions(name, values) for name, values in usage.items()}
    widths = [max(layer.shape[1], 0.22 * layer.shape[0]) for layer in layers.values()]
    with _figure(path, (1.6 + 2.3 * len(layers), 3.9)) as figure:
        grid = figure.subplots(1, len(layers), squeeze=False, width_ratios=widths)[0]
        for axes, (name, layer) in zip(grid, layers.items(), strict=True):
            _usage_panel(axes, name, layer)
        grid[0].set_ylabel("output channel")
        handles = [
            Patch(facecolor=colour, edgecolor="#808080", linewidth=0.6, label=label)
            for colour, label in (
                (_ALWAYS, "used by every task"),
                (_SOMETIMES, "used by some tasks"),
                (_NEVER, "never used (pruned)"),
            )
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        if title:
            figure.suptitle(title)


def accuracy_against_macs(
    points: Sequence[Point], path: str | Path, *, title: str | None = None
) -> None:
    """Draws accuracy, with its 95 % interval, against multiply-accumulates per image.

    Args:
        points: The networks.
        path: The picture to write; its suffix gives the format.
        title: Title of the figure.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If there is no point, or points are of different measures.
    """
    owner = "accuracy_against_macs"
    require_type(owner, "points", points, (tuple, list), "a sequence of Point")
    path = _picture(owner, path, title)
    require(bool(points), owner, "points", "at least one point", points)
    for point in points:
        require_type(owner, "each of points", point, Point, "a Point")
    measure = _one_measure(owner, "points", {point.measure for point in points})
    with _figure(path, (5.6, 3.9)) as figure:
        axes = figure.subplots()
        for index, point in enumerate(points):
            _labelled_point(axes, point, COLOURS[index % len(COLOURS)])
        axes.set_xlim(0, 1.35 * max(point.macs for point in points) / 1e6)
        axes.set_xlabel("multiply-accumulates per image (millions)")
        axes.set_ylabel(f"{measure} (95 % interval)")
        if measure == "accuracy":
            _roomy_limits(axes, points)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        if title:
            axes.set_title(title)


def learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
    *,
    against: str = "iteration",
    title: str | None = None,
) -> None:
    """Draws training (thin, smoothed) and validation (points, with intervals) accuracy of runs.

    Or what their records say they are judged by in its place.

    Args:
        runs: For every run's label, the records of its ``metrics.jsonl``.
        path: The picture to write.
        against: "iteration", or "elapsed": seconds of processor time spent in training steps.
        title: Title of the figure.

    Raises:
        TypeError: If an argument, or a number of a record, has another type.
        ValueError: If no run has a record, ``against`` is neither, or runs are judged differently.
    """
    owner = "learning_curves"
    require_mapping(owner, "runs", runs)
    path = _picture(owner, path, title)
    require_choice(owner, "against", against, _ABSCISSAE)
    require(any(runs.values()), owner, "runs", "at least one record", runs)
    for label, records in runs.items():
        require_type(owner, f"runs[{label!r}]", records, (tuple, list), "a sequence of records")
        for number, record in enumerate(records):
            require_mapping(owner, f"runs[{label!r}][{number}]", record)
            check_record(f"{owner}: runs[{label!r}][{number}]", record)
    each = (record for records in runs.values() for record in records)
    measure = _one_measure(owner, "runs", {record.get("measure", "accuracy") for record in each})
    pruning = any(
        record.get("active", 1.0) < 1.0 for records in runs.values() for record in records
    )
    with _figure(path, (6.4, 5.6 if pruning else 3.9)) as figure:
        panels = figure.subplots(1 + pruning, sharex=True, squeeze=False)[:, 0]
        for index, (label, records) in enumerate(runs.items()):
            colour = COLOURS[index % len(COLOURS)]
            _score_curve(panels[0], label, records, against, colour, measure)
            if pruning:
                _active_curve(panels[1], records, against, colour)
        panels[0].set_ylabel(f"query {measure}")
        styles = (
            Line2D(
                [], [], color="#606060", linewidth=1, alpha=0.6, label="training (running mean)"
            ),
            Line2D(
                [],
                [],
                color="#606060",
                marker="o",
                markersize=4,
                label="validation (95 % interval)",
            ),
        )
        panels[0].legend(
            handles=[*panels[0].get_legend_handles_labels()[0], *styles],
            loc="lower right" if measure == "accuracy" else "best",
        )
        if pruning:
            panels[1].set_ylabel("active kernels")
            panels[1].set_ylim(0, 1.05)
        for axes in panels if measure == "accuracy" else panels[1:]:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        panels[-1].set_xlabel(_ABSCISSAE[against])
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if title:
            panels[0].set_title(title)


def _one_measure(owner: str, name: str, measures: set[str]) -> str:
    """What all are judged by; two scales do not fit one axis."""
    require(len(measures) == 1, owner, name, "judged by one measure", sorted(measures))
    return measures.pop()


def _picture(owner: str, path: str | Path, title: str | None) -> Path:
    """The file of a picture, in a format that matplotlib writes."""
    chosen = require_path(owner, "path", path)
    formats = FigureCanvasAgg.get_supported_filetypes()
    kind = chosen.suffix.lstrip(".").lower()
    wanted = f"a file whose suffix is one of {', '.join(sorted(formats))}"
    require(kind in formats, owner, "path", wanted, str(path))
    if title is not None:
        require_text(owner, "title", title)
    return chosen


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Generator[Figure]:
    """A figure in the package's style, written to ``path`` at the end."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        yield figure
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix.lstrip("."))
        atomic.make_folder(path.parent)
        atomic.replace(path, picture.getvalue())


def _fractions(name: str, values: ArrayLike) -> NDArray[np.float64]:
    owner, expected = "kernel_usage", "a matrix (O, I) of fractions in [0, 1]"
    try:
        layer = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        refuse(owner, f"usage[{name!r}]", expected, shown(values), TypeError)
    fits = layer.ndim == 2 and layer.size > 0 and layer.min() >= 0 and layer.max() <= 1
    require(fits, owner, f"usage[{name!r}]", expected, layer.shape)
    return layer


def _usage_panel(axes: Axes, name: str, layer: NDArray[np.float64]) -> None:
    states = np.where(layer >= 1, 2, np.where(layer > 0, 1, 0))
    axes.imshow(
        states,
        cmap=ListedColormap([_NEVER, _SOMETIMES, _ALWAYS]),
        vmin=0,
        vmax=2,
        aspect="auto",
        interpolation="nearest",
    )
    axes.grid(False)
    axes.set_title(f"{name}\n{100 * layer.mean():.0f} % active")
    axes.set_xlabel("input channel")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    for spine in axes.spines.values():
        spine.set_visible(True)


def _labelled_point(axes: Axes, point: Point, colour: str) -> None:
    where = (point.macs / 1e6, point.accuracy)
    axes.errorbar(
        *where, yerr=point.interval, fmt="o", color=colour, markersize=7, capsize=4, linewidth=1.5
    )
    axes.annotate(
        f"{point.label}\n{_value(point)}",
        where,
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        color=colour,
    )


def _value(point: Point) -> str:
    percent = point.measure == "accuracy"
    return f"{100 * point.accuracy:.1f} %" if percent else f"{point.accuracy:.4g}"


def _roomy_limits(axes: Axes, points: Sequence[Point]) -> None:
    """Leaves room around the intervals, so that close accuracies are not magnified beyond sense."""
    lowest = min(point.accuracy - point.interval for point in points)
    highest = max(point.accuracy + point.interval for point in points)
    room = max(0.3 * (highest - lowest), 0.01)
    axes.set_ylim(max(0.0, lowest - room), min(1.0, highest + room))


def _score_curve(
    axes: Axes,
    label: str,
    records: Sequence[Mapping[str, Any]],
    against: str,
    colour: str,
    measure: str,
) -> None:
    steps, values = _series(records, "train", against, measure)
    if len(steps):
        axes.plot(steps, _smooth(values), color=colour, linewidth=1, alpha=0.5)
    steps, values = _series(records, "validation", against, measure)
    # A record may lack its interval: that point is drawn without one.
    scored = [{"interval": None, **record} for record in records if measure in record]
    _, intervals = _series(scored, "validation", against, "interval")
    axes.errorbar(
        steps,
        values,
        yerr=intervals,
        color=colour,
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )


def _active_curve(
    axes: Axes, records: Sequence[Mapping[str, Any]], against: str, colour: str
) -> None:
    steps, values = _series(records, "train", against, "active")
    axes.plot(steps, values, color=colour, linewidth=1.5)


def _series(
    records: Sequence[Mapping[str, Any]], kind: str, against: str, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    there = {against, name}
    chosen = [each for each in records if each["kind"] == kind and there <= each.keys()]
    steps = np.array([record[against] for record in chosen], dtype=float)
    return steps, np.array([record[name] for record in chosen], dtype=float)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Trailing means over a fiftieth of the curve."""
    window = max(1, len(values) // 50)
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)
