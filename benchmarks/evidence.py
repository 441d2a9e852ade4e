"""Writes the tables of ``docs/evidence.md`` from raw results: ``python -m benchmarks.evidence``.

With ``--check`` nothing is written, and the exit code says whether it is up to date. With
``--quick`` some cases of every study are trained for a moment on drawn images, and the document is
made of those and printed: all that leads to it, in under a minute.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.evidence_tables import SECTIONS, Results
from benchmarks.harness import RESULTS
from benchmarks.studies import Budget, Case
from benchmarks.study import ALL, run_case, train_here
from metasparse_ext.training import RunConfig

DOCUMENT = RESULTS.parents[1] / "docs" / "evidence.md"
_BLOCK = re.compile(r"(<!-- tables: (\w+) -->\n).*?(<!-- end of tables -->)", re.DOTALL)
# The images that --quick trains on: classes of a split, images of a class, their side.
_CLASSES, _IMAGES, _SIDE = 20, 32, 16


def render(results: Results) -> str:
    """The document with its tables made anew."""

    def tables(found: re.Match[str]) -> str:
        text = "\n".join(SECTIONS[found[2]](results))
        return f"{found[1]}\n{text}\n{found[3]}"

    return _BLOCK.sub(tables, DOCUMENT.read_text(encoding="utf-8"))


def quick(folder: Path, sample: int = 4) -> Results:
    """Trains some cases of every study for a moment.

    Args:
        folder: Where their data and runs are, and what is kept of them.
        sample: How many cases of each study, or one or two more.
    """
    for name in ("omniglot", "cifar_fs"):
        np.savez(folder / f"{name}.npz", **_images(channels=1 if name == "omniglot" else 3))
    results = folder / "benchmarks" / "results"
    for study, cases in ALL.items():
        for case in _sample(list(cases(Budget())), sample):
            runs = folder / "runs" / study
            run_case(_momentary(case, folder), runs, results / study, train=train_here)
    return Results(results)


def _sample(cases: list[Case], count: int) -> Iterator[Case]:
    """So many cases, or one or two more, from all over a study."""
    return islice(cases, None, None, max(1, len(cases) // count))


def _images(channels: int) -> dict[str, np.ndarray]:
    """A data file of noisy patterns, others in every class."""
    rng = np.random.default_rng(channels)
    splits = np.repeat(["train", "val", "test"], _CLASSES)
    shape = (len(splits), 1, _SIDE, _SIDE, channels)
    images = rng.integers(0, 180, shape) + rng.integers(0, 70, (len(splits), _IMAGES, *shape[2:]))
    images = images.reshape(-1, *shape[2:]).astype(np.uint8)
    return {
        "images": images[..., 0] if channels == 1 else images,
        "labels": np.repeat(np.arange(len(splits)), _IMAGES),
        "class_names": np.array([f"class {index}" for index in range(len(splits))]),
        "split": splits,
    }


def _momentary(case: Case, root: Path) -> Case:
    """A case, and its parent, of two iterations of little."""
    stages = tuple(_shortened(config, root) for config in case.stages)
    parent = _momentary(case.parent, root) if case.parent else None
    return replace(case, stages=stages, parent=parent)


def _shortened(config: RunConfig, root: Path) -> RunConfig:
    """Two iterations of little."""
    short = {"inner_steps": 1, "adapt_steps": 1, "rounds": 1, "check_every": 1, "rewind": None}
    short |= {"total_iterations": 2}
    options = {k: short.get(k, v) for k, v in config.options.items()}
    return config.replace(
        options=options,
        root=str(root),
        image_size=_SIDE,
        width=4,
        queries=2,
        evaluation_queries=2,
        tasks=2,
        iterations=2,
        max_seconds=None,
        log_every=1,
        validate_every=2,
        validation_tasks=2,
        evaluation_tasks=4,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if stale")
    parser.add_argument("--quick", action="store_true", help="print one of momentary trainings")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            print(render(quick(Path(folder))))
        return
    text = render(Results(RESULTS))
    if options.check:
        sys.exit(text != DOCUMENT.read_text(encoding="utf-8"))
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
