"""A tiny data set and configuration on which training takes milliseconds."""

import inspect
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metasparse_ext
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.training import Run, RunConfig, metrics

CLASSES = {"train": 12, "val": 8, "test": 8}
EACH, SIDE = 8, 16


def package_path() -> dict[str, str]:
    """The environment in which another process imports the package that is under test."""
    return {**os.environ, "PYTHONPATH": str(Path(metasparse_ext.__file__).parents[1])}


def write_tiny_sets(folder: Path, each: int = EACH) -> Path:
    """Writes ``omniglot-tiny.npz``: a class is a blocky pattern, its images noisy copies.

    ``cifar_fs-tiny.npz`` is the same in colour.
    """
    rng = np.random.default_rng(0)
    images, labels, splits = [], [], []
    for split, count in CLASSES.items():
        for _ in range(count):
            pattern = np.kron(rng.integers(0, 2, (4, 4)), np.ones((4, 4))) * 180
            noise = rng.integers(0, 70, (each, SIDE, SIDE))
            images.append((pattern + noise).astype(np.uint8))
            labels += [len(splits)] * each
            splits.append(split)
    grey = np.concatenate(images)
    colour = np.stack([grey, grey.swapaxes(1, 2), 255 - grey], -1)
    for name, drawn in (("omniglot", grey), ("cifar_fs", colour)):
        np.savez(
            folder / f"{name}-tiny.npz",
            images=drawn,
            labels=np.array(labels),
            class_names=np.array([f"class {number}" for number in range(len(splits))]),
            split=np.array(splits),
        )
    return folder


def tiny_config(root: Path, learner: str = "maml", **changes: object) -> RunConfig:
    """A run of six iterations of a Conv-4 of width 4."""
    known = inspect.signature(LEARNERS[learner]).parameters
    inner = {"rounds": 1, "inner_lr": 0.1, "inner_steps": 2}
    fields = {
        "learner": learner,
        "data": "omniglot",
        "root": str(root),
        "ways": 3,
        "queries": 2,
        "tasks": 2,
        "width": 4,
        "iterations": 6,
        "validate_every": 3,
        "validation_tasks": 4,
        "evaluation_tasks": 5,
        "save_every": 2,
        "options": {name: value for name, value in inner.items() if name in known},
    }
    return RunConfig(**{**fields, **changes})


def timeless(run: Run) -> list[dict[str, Any]]:
    """The metrics of a run without what the clock said."""
    clocks = {"seconds", "elapsed"}
    return [
        {name: value for name, value in record.items() if name not in clocks}
        for record in metrics.read(run.metrics_path)
    ]


class StopAfter:
    """A reporter that presses Ctrl-C after some iterations."""

    def __init__(self, iteration):
        self.iteration = iteration

    def start(self, config, iteration):
        pass

    def step(self, record, done):
        if record["iteration"] == self.iteration:
            signal.raise_signal(signal.SIGINT)

    def validation(self, record, best):
        pass


def assert_same_state(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_state(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_state(one, other)
    else:
        assert left == right


def one_line(result):
    """What a command line that refused something said, which is one line."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    return result.stderr
