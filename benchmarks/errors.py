"""The images that most tasks get wrong, as a sheet of pictures: the convex report's error analysis.

``python -m benchmarks.errors RUN`` adapts a run's network to many test tasks and draws the query
images that are classified wrongly most often.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS
from metasparse_ext.data import EpisodeSampler, ImageClasses
from metasparse_ext.data.batch import Samples
from metasparse_ext.training import Run, build
from metasparse_ext.training.scores import predict

PICTURES = RESULTS.parents[1] / "docs"
_SEED = 3_000_017
_COLUMNS = 8


def picture(task: str) -> Path:
    """Where the sheet of a data set, shots and learner lies."""
    return PICTURES / f"errors-{task}.png"


class Misclassified(NamedTuple):
    """An image that tasks got wrong.

    Attributes:
        image: (C, H, W) uint8.
        name: Of its class.
        taken_for: The class that it was most often taken for.
        wrong, tasks: In how many tasks it was, out of how many that had it among their queries.
    """

    image: np.ndarray
    name: str
    taken_for: str
    wrong: int
    tasks: int


class Tally:
    """What tasks answered, image by image."""

    def __init__(self, data: ImageClasses) -> None:
        self.data = data
        self.tasks = np.zeros(len(data.images), np.int64)
        self.wrong = np.zeros(len(data.images), np.int64)
        self.taken_for: dict[int, Counter[int]] = {}

    def add(self, rows: np.ndarray, answers: np.ndarray) -> None:
        """Adds a task: rows (ways, queries) of its query images, and the label of each answer."""
        classes = np.searchsorted(self.data.offsets, rows[:, 0], side="right") - 1
        np.add.at(self.tasks, rows, 1)
        for label, (row, given) in enumerate(zip(rows.tolist(), answers.tolist(), strict=True)):
            for image, answer in zip(row, given, strict=True):
                if answer != label:
                    self.wrong[image] += 1
                    self.taken_for.setdefault(image, Counter())[int(classes[answer])] += 1

    def worst(self, count: int, least: int) -> list[Misclassified]:
        """The images that were wrong most often, of those in at least so many tasks.

        Of images that are wrong equally often those in most tasks come first.
        """
        rate = np.where(self.tasks >= least, self.wrong / np.maximum(self.tasks, 1), 0.0)
        chosen = np.lexsort((-self.wrong, -rate))[:count]
        return [self._misclassified(int(row)) for row in chosen if rate[row]]

    def _misclassified(self, row: int) -> Misclassified:
        names = self.data.class_names
        own = int(np.searchsorted(self.data.offsets, row, side="right") - 1)
        other = self.taken_for[row].most_common(1)[0][0]
        wrong, tasks = int(self.wrong[row]), int(self.tasks[row])
        return Misclassified(self.data.images[row], names[own], names[other], wrong, tasks)


def tally(run: Run, *, tasks: int = 2000, split: str = "test") -> Tally:
    """Classifies the query images of many tasks by a run's best network, transductively.

    Raises:
        ValueError: If the run's data are not the classes of one data set.
    """
    config = run.config()
    data = build.images(config, split)
    if not isinstance(data, ImageClasses):
        raise ValueError(f"{run}: expected the classes of one data set, got {data}")
    learner = build.trained(run, config, data.shape).eval()
    queries = config.evaluation_queries or config.queries
    task = {"ways": config.ways, "shots": config.shots, "queries": queries}
    sampler = EpisodeSampler(data, **task, tasks=config.tasks, seed=_SEED)
    found = Tally(data)
    for index in range(-(-tasks // config.tasks)):
        batch, numbers = sampler[index], sampler.numbers(index)
        adapted = learner.adapt(batch.support)
        with torch.no_grad():
            logits = predict(adapted, batch.support, _images(batch.query))
        answers = logits.argmax(-1).unflatten(1, (config.ways, queries)).numpy()
        rows = sampler.rows(numbers)[:, :, config.shots :]
        for row, answer in zip(rows, answers, strict=True):
            found.add(row, answer)
    return found


def _images(samples: Samples) -> torch.Tensor:
    if not isinstance(samples.images, torch.Tensor):
        raise TypeError("expected images, one tensor")
    return samples.images


def draw(found: list[Misclassified], path: Path, title: str) -> None:
    """A sheet of the images, each with its class, what it was taken for, and how often."""
    rows = max(1, -(-len(found) // _COLUMNS))
    with mpl.rc_context({"savefig.dpi": 130, "figure.constrained_layout.use": True}):
        figure = Figure(figsize=(1.6 * _COLUMNS, 0.5 + 2.1 * rows))
        figure.suptitle(title)
        grid = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, each in zip(grid.flat, found, strict=False):
            pixels = each.image.transpose(1, 2, 0)
            axes.imshow(pixels.squeeze(-1) if len(each.image) == 1 else pixels, cmap="gray")
            words = (_short(each.name), f"as {_short(each.taken_for)}")
            axes.set_title("\n".join([*words, f"{each.wrong} of {each.tasks}"]), fontsize=7)
        figure.savefig(path)


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"…{name[-most + 1 :]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--tasks", type=int, default=2000, help="test tasks (default: 2000)")
    parser.add_argument("--images", type=int, default=24, help="pictures (default: 24)")
    parser.add_argument(
        "--least", type=int, default=8, help="tasks that an image must be in (default: 8)"
    )
    parser.add_argument("--out", type=Path, help="default: docs/errors-DATA-SHOTS-LEARNER.png")
    options = parser.parse_args()
    run = Run(options.run)
    config, found = run.config(), tally(run, tasks=options.tasks)
    seen = found.tasks >= options.least
    often = int((found.wrong[seen] > found.tasks[seen] / 2).sum())
    title = (
        f"{config.learner}, {config.data}, {config.ways}-way {config.shots}-shot: of {seen.sum()} "
        f"test images in at least {options.least} tasks, {often} are wrong in more than half"
    )
    out = options.out or picture(f"{config.data}-{config.shots}shot-{config.learner}")
    draw(found.worst(options.images, options.least), out, title)
    print(title, out, sep="\n")


if __name__ == "__main__":
    main()
