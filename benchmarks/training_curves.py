"""Accuracy, loss and gradient norm of training, the report's figures 2 to 5.

``python -m benchmarks.training_curves`` draws them, against iterations and against processor
seconds, from the metrics that are kept of the learners' study.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks import published
from benchmarks.harness import RESULTS
from benchmarks.studies import TASKS
from metasparse_ext.plots import COLOURS
from metasparse_ext.training import Run, metrics

PICTURES = RESULTS.parents[1] / "docs"
_ROWS = {"accuracy": "accuracy on queries", "loss": "query loss", "gradient_norm": "gradient norm"}
_COLUMNS = {"iteration": "meta-iteration", "elapsed": "processor seconds"}
_SMOOTH = 25


def picture(task: str) -> Path:
    """Where the curves of a task are drawn."""
    return PICTURES / f"training-{task}.png"


def records(results: Path, task: str) -> dict[str, list[dict[str, Any]]]:
    """Of the report's six learners those whose training on a task is kept: its records."""
    found = {}
    for learner in published.CONVEX["1shot"]:
        path = Run(results / "learners" / f"{task}-{learner}").metrics_path
        if path.is_file():
            found[learner] = [each for each in metrics.read(path) if each["kind"] == "train"]
    return found


def draw(runs: dict[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    """A line a learner, of means over the records around each."""
    style = {"savefig.dpi": 110, "figure.constrained_layout.use": True, "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 8))
        figure.suptitle(title)
        panels = figure.subplots(len(_ROWS), len(_COLUMNS), sharex="col", sharey="row")
        for row, (field, name) in zip(panels, _ROWS.items(), strict=True):
            row[0].set_ylabel(name)
            for axes, against in zip(row, _COLUMNS, strict=True):
                axes.set_yscale("linear" if field == "accuracy" else "log")
                axes.grid(color="#E4E4E4")
                for colour, (learner, steps) in zip(COLOURS, runs.items(), strict=False):
                    x = np.array([step[against] for step in steps], float)
                    y = smoothed(np.array([step[field] for step in steps], float))
                    axes.plot(x, y, color=colour, linewidth=1.2, label=learner)
        for axes, name in zip(panels[-1], _COLUMNS.values(), strict=True):
            axes.set_xlabel(name)
        panels[0, 0].legend(fontsize=8)
        figure.savefig(path)


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the values around each, fewer at the ends."""
    ones = np.ones(min(_SMOOTH, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for task in TASKS:
        runs = records(RESULTS, task)
        if runs:
            draw(runs, picture(task), f"5-way, {task.replace('-', ' ')}")
            print(picture(task))


if __name__ == "__main__":
    main()
