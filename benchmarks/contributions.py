"""What each input kernel contributes to output channels, MetaDOCK's figure 1.

``python -m benchmarks.contributions DENSE PRUNED`` draws it from two runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS
from metasparse_ext.nn import MaskedConv2d
from metasparse_ext.training import Run, build

PICTURE = RESULTS.parents[1] / "docs" / "metadock-kernels.png"


def kernel_contributions(run: Run, *, channels: int = 10, seed: int = 0) -> np.ndarray:
    """(channels, I): parts of the kernels of some output channels of the last masked convolution.

    The part of a kernel is its norm among the norms of all kernels of its output channel; a kernel
    that the meta mask prunes has none. A channel all of whose kernels are pruned is zeros.

    Args:
        run: A run with a checkpoint.
        channels: How many output channels, drawn at random; all of them where there are fewer.
        seed: Of the draw.

    Raises:
        ValueError: If the run's network has no masked convolution.
    """
    config = run.config()
    shape, outputs = build.input_of(run, config)
    learner = build.trained(run, config, shape, outputs=outputs)
    layers = {n: m for n, m in learner.model.named_modules() if isinstance(m, MaskedConv2d)}
    if not layers:
        raise ValueError(f"{run}: expected a network with masked convolutions, got none")
    name, layer = list(layers.items())[-1]
    with torch.no_grad():
        norms = layer.weight.flatten(2).norm(dim=-1)
        mask = learner.masks().get(name)
        if mask is not None:
            norms = norms * (mask if mask.dim() == 2 else mask.flatten(2).any(-1))
        parts = norms / norms.sum(1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
    chosen = np.random.default_rng(seed).permutation(len(parts))[:channels]
    return parts.cpu().double().numpy()[np.sort(chosen)]


def draw(panels: dict[str, np.ndarray], path: Path) -> None:
    """One panel for each network: a line an output channel, a cell a kernel."""
    with mpl.rc_context({"savefig.dpi": 150, "figure.constrained_layout.use": True}):
        figure = Figure(figsize=(9, 1.2 + 1.6 * len(panels)))
        largest = max(parts.max() for parts in panels.values())
        for axes, (title, parts) in zip(
            np.atleast_1d(figure.subplots(len(panels), 1, sharex=True)), panels.items(), strict=True
        ):
            image = axes.imshow(parts, aspect="auto", cmap="viridis", vmin=0, vmax=largest)
            axes.set(title=title, ylabel="output channel")
        axes.set_xlabel("input kernel")
        figure.colorbar(image, ax=figure.axes, label="part of the channel's kernels")
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dense", type=Path, help="run without a budget")
    parser.add_argument("pruned", type=Path, help="run with one")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    runs = {"no budget": options.dense, "with a budget": options.pruned}
    draw({title: kernel_contributions(Run(folder)) for title, folder in runs.items()}, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
