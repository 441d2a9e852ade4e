"""What the blocks of each document take for granted: small data, runs and names."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import peers
from metasparse_ext import data
from metasparse_ext.algorithms import MAML
from metasparse_ext.nn import Conv4
from metasparse_ext.training import Run, Trainer
from support import replicas
from support.documents import FILE, blocks
from support.training_helpers import tiny_config, write_tiny_sets


def omniglot(folder: Path) -> None:
    """A data set by the name omniglot, with images enough for 15 queries a class."""
    folder.mkdir(exist_ok=True)
    write_tiny_sets(folder, each=16)


def pets(folder: Path, name: str) -> None:
    """A folder of two images for each of two classes, and images beside it."""
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / name / kind).mkdir(parents=True)
        for number in (1, 2):
            image = Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8))
            image.save(folder / f"{kind}{number}.png")
            image.save(folder / name / kind / f"{number}.png")
    image.save(folder / "pet.png")


def own_parts(folder: Path, names: dict[str, str]) -> None:
    """The files of docs/own.md; its parts have other names as well."""
    for block in blocks("docs/own.md"):
        if match := FILE.match(block.text):
            (folder / match[1]).write_text(block.text)
    with (folder / "mine.py").open("a") as file:
        file.writelines(f"{name} = {part}\n" for name, part in names.items())


def trained(folder: Path, name: str, learner: str, **changes: object) -> None:
    omniglot(folder / "data")
    config = tiny_config(folder / "data", learner, iterations=2, validate_every=2, **changes)
    Trainer(config, Run(folder / "runs" / name)).fit()


def readme(folder: Path) -> dict[str, Any]:
    omniglot(folder / "DATA")
    pets(folder, "PETS")
    parts = {"Learner": "Patient", "tasks": "patterns", "network": "perceptron"}
    own_parts(folder, {**parts, "loss": "smoothed", "score": "top2"})
    return {}


def data_sets(folder: Path) -> dict[str, Any]:
    replicas.own_folders(folder / "DIR")
    replicas.cub(folder)
    images = torch.rand(4, 3, 8, 8)
    labels = torch.arange(2).repeat(2)
    dataset = [(Image.new("RGB", (8, 8)), int(label)) for label in labels]
    return {"images": images, "labels": labels, "dataset": dataset}


def gpu(folder: Path) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = MAML(Conv4(1, 28, 4, ways=2), inner_steps=1).to(device)
    return {
        "learner": learner,
        "episodes": islice(data.episodes("glyphs", ways=2, shots=1, queries=1, tasks=2), 2),
    }


def implicit(folder: Path) -> dict[str, Any]:
    images, labels = torch.rand(4, 5, 3, 12, 12), torch.arange(5).expand(4, -1)
    return {
        "support_images": images,
        "support_labels": labels,
        "query_images": images.flip(-1),
        "query_labels": labels,
    }


def learn2learn(folder: Path) -> dict[str, Any]:
    if not peers.HAS_LEARN2LEARN:
        pytest.skip("learn2learn is not installed; docs/learn2learn.md says how it is")
    peers.learn2learn()
    return {}


def learners(folder: Path) -> dict[str, Any]:
    omniglot(folder)
    return {"root": folder}


def masks(folder: Path) -> dict[str, Any]:
    net = Conv4(1, 28, 4, ways=2)
    return {
        "scores": torch.randn(64, 64, requires_grad=True),
        "x": torch.randn(2, 64, 4, 4),
        "model": net,
        "net": net,
        "images": torch.rand(2, 1, 28, 28),
        "adapted": torch.randn(2, 4, 4, 3, 3),
        "density": torch.tensor(0.5, requires_grad=True),
    }


def out(folder: Path) -> dict[str, Any]:
    trained(folder, "half", "metadock")
    pets(folder, "pets")
    return {"images": torch.rand(2, 1, 16, 16)}


def training(folder: Path) -> dict[str, Any]:
    for learner in ("maml", "metadock"):
        for seed in range(3):
            trained(folder, f"{learner}-{seed}", learner, seed=seed)
    return {}


GIVEN = {
    "README.md": readme,
    "docs/data.md": data_sets,
    "docs/gpu.md": gpu,
    "docs/implicit.md": implicit,
    "docs/learn2learn.md": learn2learn,
    "docs/learners.md": learners,
    "docs/masks.md": masks,
    "docs/out.md": out,
    "docs/training.md": training,
}
