"""Checkpoints: the whole state of a run in one file, with a checksum over every byte of it.

The file is one of safetensors: the tensors by name, and as metadata a JSON text of all that is no
tensor, sealed by :mod:`metasparse_ext._sealed`.
The file that a new one replaces is kept as its previous generation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from metasparse_ext import _atomic as atomic
from metasparse_ext import _sealed as sealed
from metasparse_ext._records import check_fields

logger = logging.getLogger("metasparse_ext")

FORMAT = "metasparse checkpoint 2"


class CheckpointError(Exception):
    """A file of a run that is missing, damaged or made for something else."""


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
        skipped: The meta-steps that were left out: the fields of ``meta_step.Skipped``.
        records: How many records of metrics were written before.
        platform: What the numbers depend on beside the configuration, by name.
    """

    config: dict[str, Any]
    iteration: int
    learner: dict[str, Any]
    optimizer: dict[str, Any]
    best: dict[str, Any] | None
    random_state: Tensor
    elapsed: float = 0.0
    skipped: dict[str, Any] = field(default_factory=dict)
    records: int = 0
    platform: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, {"elapsed": {"least": 0}})


def previous(path: Path) -> Path:
    """Where the checkpoint is kept that the one at ``path`` has replaced."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def exists(path: Path) -> bool:
    """Whether there is a checkpoint to :func:`load`, of either generation."""
    return path.exists() or previous(path).exists()


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint so that ``path`` never holds half of one; keeps the previous one.

    Raises:
        OSError: If it cannot be written; what was there before is there still.
    """
    atomic.replace_keeping(path, previous(path), to_bytes(checkpoint))


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint to the CPU; where it is damaged, with a warning the previous one.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format, and there is no
            previous one that is whole.
    """
    try:
        return read(path)
    except CheckpointError as error:
        if not previous(path).exists():
            raise
        try:
            older = read(previous(path))
        except CheckpointError as other:
            raise CheckpointError(f"{error}; {other}") from other
        logger.warning("%s; taking the one before, %s", error, previous(path))
        return older


def read(path: Path) -> Checkpoint:
    """Reads one file.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint, got a folder")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        return from_bytes(path.read_bytes())
    except sealed.ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: not a whole checkpoint ({reason})") from error


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """The file."""
    tensors: dict[str, Tensor] = {}
    tree = {
        entry.name: _pack(getattr(checkpoint, entry.name), entry.name, tensors)
        for entry in fields(checkpoint)
    }
    return sealed.to_bytes(tensors, {"format": FORMAT, "state": json.dumps(tree)})


def from_bytes(data: bytes) -> Checkpoint:
    """What :func:`to_bytes` wrote.

    Raises:
        Those of ``_sealed.ERRORS``: for anything else.
    """
    tensors, metadata = sealed.from_bytes(data, FORMAT)
    tree = json.loads(metadata["state"])
    if not isinstance(tree, dict):
        raise TypeError(f"expected a JSON object as its state, got {type(tree).__name__}")
    unknown = sorted(tree.keys() ^ {entry.name for entry in fields(Checkpoint)})
    if unknown:
        raise ValueError(f"unknown or missing entry {', '.join(unknown)}")
    state = {name: _unpack(value, tensors) for name, value in tree.items()}
    return Checkpoint(**state)


# Values that are no tensors are JSON. A tensor is the name it has in the file; containers say what
# they are, because JSON has no tuples and its keys are strings.


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = name if name not in tensors else f"{name}#{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[k, _pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"checkpoint: {name}: cannot keep a {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise TypeError("a list without its kind")
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(entry, tensors) for key, entry in content}
    if kind == "list":
        return [_unpack(entry, tensors) for entry in content]
    if kind == "tuple":
        return tuple(_unpack(entry, tensors) for entry in content)
    raise ValueError(f"unknown kind of value {kind!r}")
