"""The regression of MAML's paper: sinusoids of drawn amplitude and phase."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

from metasparse_ext._arguments import require_count, require_type
from metasparse_ext.data.batch import Samples, TaskBatch
from metasparse_ext.data.options import MOST


class Sinusoids:
    """Random access to batches of regression tasks y = a sin(x - b): ``sinusoids[i]`` is batch i.

    As in section 5.1 of Finn et al., 2017: a is uniform in [0.1, 5], b in [0, pi], x in [-5, 5].
    Task n is drawn from a counter-based generator at (seed, split, n), so it does not depend on how
    the tasks are cut into batches.

    Args:
        shots: K, points of the support set of a task.
        queries: points of its query set.
        tasks: T, tasks per batch.
        seed: at least 0.
        split: mixed with the seed; tasks of different splits are drawn apart.

    Shapes: images, the points x, (T, K, 1) and labels, their values y, (T, K, 1), both float32.

    Raises:
        TypeError, ValueError: an argument of another type, or too small.
    """

    def __init__(
        self, *, shots: int, queries: int, tasks: int, seed: int = 0, split: str = "train"
    ) -> None:
        for name, value in {"shots": shots, "queries": queries, "tasks": tasks}.items():
            require_count("Sinusoids", name, value, least=1, most=MOST)
        require_count("Sinusoids", "seed", seed)
        require_type("Sinusoids", "split", split, str, "the name of a split")
        self.shots, self.queries, self.tasks = shots, queries, tasks
        entropy = [seed, zlib.crc32(split.encode())]
        self._key = np.random.SeedSequence(entropy).generate_state(2, np.uint64)

    def __getitem__(self, index: int) -> TaskBatch:
        """Draws batch ``index``, at least 0."""
        require_count("Sinusoids", "index", index, most=MOST)
        numbers = range(index * self.tasks, (index + 1) * self.tasks)
        points, values = (
            torch.from_numpy(np.stack(part).astype(np.float32))
            for part in zip(*map(self._draw, numbers), strict=True)
        )
        support, query = slice(self.shots), slice(self.shots, None)
        return TaskBatch(*(Samples(points[:, s], values[:, s]) for s in (support, query)))

    def _draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Points and values (shots + queries, 1) of a task."""
        # As in EpisodeSampler: tasks are 2^128 values of the generator apart.
        counter = np.array([0, 0, number, 0], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, math.pi)
        points = rng.uniform(-5.0, 5.0, (self.shots + self.queries, 1))
        return points, amplitude * np.sin(points - phase)
