"""The figures of runs, from what their folders hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metasparse_ext import plots
from metasparse_ext.training import metrics, results
from metasparse_ext.training.run import Run


def draw(
    runs: Mapping[str, Run], folder: Path, *, split: str = "test", against: str = "iteration"
) -> list[Path]:
    """Draws what runs have: learning curves and, of evaluated ones, accuracy and kernels in use.

    Args:
        runs: The runs by the label they get.
        folder: Where the pictures go.
        split: Which evaluations to show.
        against: Abscissa of the learning curves, "iteration" or "elapsed".

    Returns:
        The pictures written.
    """
    drawn = []
    records = {label: metrics.read(run.metrics_path) for label, run in runs.items()}
    if any(records.values()):
        drawn.append(folder / "learning-curves.png")
        plots.learning_curves(records, drawn[-1], against=against, title="Meta-training")
    evaluated = {label: results.kept(run, split) for label, run in runs.items()}
    evaluated = {label: result for label, result in evaluated.items() if result is not None}
    if evaluated:
        drawn.append(folder / "accuracy-macs.png")
        points = [
            plots.Point(label, r.numbers["macs"], r.numbers["accuracy"], r.numbers["interval"])
            for label, r in evaluated.items()
        ]
        first = next(iter(evaluated.values()))
        plots.accuracy_against_macs(points, drawn[-1], title=first.setting)
    for label, result in evaluated.items():
        layers = results.usage(runs[label], split)
        if layers and result.numbers["active"] < 1:
            drawn.append(folder / f"kernels-{label.replace('/', '-')}.png")
            title = f"Kernels in use over {result.numbers['tasks']} tasks: {result.setting}"
            plots.kernel_usage(layers, drawn[-1], title=title)
    return drawn
