"""Checkpoints: the whole state of a run in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metasparse_ext.training import atomic

FORMAT = 1


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged or made for something else."""


@dataclass
class Checkpoint:
    """The whole state of a run after ``iteration`` meta-iterations.

    Attributes:
        config: The run's configuration as JSON values.
        iteration: Meta-iterations done.
        learner: ``state_dict`` of the learner, its iteration counter included.
        optimizer: ``state_dict`` of the outer optimizer.
        best: The validation record of the best eligible checkpoint so far, if any.
        random_state: State of torch's generator, for learners that draw numbers.
        elapsed: Seconds of processor time that the training took.
    """

    config: Mapping[str, Any]
    iteration: int
    learner: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    best: Mapping[str, Any] | None
    random_state: torch.Tensor
    elapsed: float = 0.0


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint so that ``path`` never holds half of one."""
    state = {"format": FORMAT, **vars(checkpoint)}
    atomic.replace(path, lambda file: torch.save(state, file))


def load(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Reads a checkpoint. Only tensors and plain values are accepted: no code is run.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    found = state.pop("format", None) if isinstance(state, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of format {FORMAT}, got {found}")
    return Checkpoint(**{**state, "random_state": state["random_state"].cpu()})
