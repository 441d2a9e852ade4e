"""What winning tickets have in common: densities of layers, of channels, and overlaps of masks.

``python -m benchmarks.ticket_patterns RUN...`` draws it from runs of ``meta-ticket``, such as those
of the study ``densities`` or of several seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS
from metasparse_ext.training import Run, build

PICTURE = RESULTS.parents[1] / "docs" / "ticket-patterns.png"

Masks = Mapping[str, np.ndarray]


def masks(run: Run) -> dict[str, np.ndarray]:
    """The ticket of a run: for each masked layer (O, I, kh, kw), whether a weight is kept.

    Raises:
        ValueError: If the run's learner masks nothing.
    """
    config = run.config()
    shape, outputs = build.input_of(run, config)
    learner = build.trained(run, config, shape, outputs=outputs)
    found = {name: mask.bool().cpu().numpy() for name, mask in learner.masks().items()}
    if not found:
        raise ValueError(f"{run}: expected a learner with masks, got {config.learner}")
    return found


def densities(ticket: Masks) -> np.ndarray:
    """(layers,): the fraction of weights that each layer keeps, the pattern among layers."""
    return np.array([mask.mean() for mask in ticket.values()])


def channel_densities(mask: np.ndarray) -> np.ndarray:
    """(O,): the fraction that each output channel keeps, rising: the pattern within a layer."""
    return np.sort(mask.reshape(len(mask), -1).mean(1))


def overlap(ours: Masks, theirs: Masks) -> float:
    """Weights that both keep, of those that one keeps (Jaccard's index), over all layers."""
    both = sum(int((ours[name] & theirs[name]).sum()) for name in ours)
    either = sum(int((ours[name] | theirs[name]).sum()) for name in ours)
    return both / either if either else 1.0


def chance(ours: Masks, theirs: Masks) -> float:
    """The overlap to expect of masks that share the densities of each layer and nothing else."""
    both = sum(ours[name].mean() * theirs[name].mean() * ours[name].size for name in ours)
    kept = sum(int(ours[name].sum()) + int(theirs[name].sum()) for name in ours)
    return both / (kept - both) if kept else 1.0


def draw(tickets: Mapping[str, Masks], path: Path) -> None:
    """Three panels: densities of layers, densities of a layer's channels, overlaps of tickets."""
    with mpl.rc_context({"savefig.dpi": 150, "figure.constrained_layout.use": True}):
        figure = Figure(figsize=(15, 4.8))
        layers, channels, overlaps = figure.subplots(1, 3)
        for label, ticket in tickets.items():
            layers.plot(densities(ticket), marker="o", label=label)
        first = next(iter(tickets.values()))
        layers.set_xticks(range(len(first)), list(first), rotation=20, ha="right", fontsize=7)
        layers.set(title="Layers", ylabel="density", ylim=(0, None))
        layers.legend(fontsize=7)
        _draw_channels(channels, tickets)
        _draw_overlaps(figure, overlaps, tickets)
        figure.savefig(path)


def _draw_channels(axes, tickets: Mapping[str, Masks]) -> None:
    name = list(next(iter(tickets.values())))[-1]
    for label, ticket in tickets.items():
        values = channel_densities(ticket[name])
        axes.plot(np.linspace(0, 1, len(values)), values, label=label)
    axes.set(title=f"Output channels of {name}", xlabel="channels, by density", ylabel="density")
    axes.set_ylim(0, None)


def _draw_overlaps(figure: Figure, axes, tickets: Mapping[str, Masks]) -> None:
    labels = list(tickets)
    values = np.array([[overlap(a, b) for b in tickets.values()] for a in tickets.values()])
    expected = np.array([[chance(a, b) for b in tickets.values()] for a in tickets.values()])
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.2f}" if row == column else f"{value:.2f}\n({expected[row, column]:.2f})"
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right", fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_title("Overlap of masks (in brackets: of chance)")
    figure.colorbar(image, ax=axes, label="weights both keep, of those one keeps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    draw({"/".join(folder.parts[-2:]): masks(Run(folder)) for folder in options.runs}, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
