"""Draws how fast convex heads learn beside MAML: ``python -m benchmarks.curves``.

Accuracy on validation classes against the processor seconds of training, from the runs that are
kept in ``benchmarks/results/``; writes ``docs/convex-heads.png``.
"""

from __future__ import annotations

import argparse

from benchmarks.harness import RESULTS
from metasparse_ext import plots
from metasparse_ext.training import Run, metrics

RUNS = {
    "Convex iMAML": "omniglot-convex-imaml",
    "MAML": "omniglot-maml-480s",
    "Convex MAML (ANIL)": "omniglot-convex-maml",
}
PICTURE = RESULTS.parents[1] / "docs" / "convex-heads.png"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    records = {
        label: metrics.read(Run(RESULTS / folder).metrics_path) for label, folder in RUNS.items()
    }
    title = "Omniglot, 5-way 1-shot, one core"
    plots.learning_curves(records, PICTURE, against="elapsed", title=title)
    print(PICTURE)


if __name__ == "__main__":
    main()
