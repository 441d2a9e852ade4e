"""Published hyperparameters by name, for example "metadock/cifar-fs/5way-5shot".

The files of this folder hold them, one a source. Keys before the first ``[[preset]]`` are common to
all presets of a file; a name says the learner, the data and the task, ``ways`` and ``shots``, and
there are as many ``queries`` as shots where nothing else is said.

What a source does not state is left at the package's default and named in the preset's note.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

from metasparse_ext._arguments import require_choice
from metasparse_ext._records import check_fields


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published setting; the fields are named as in a run's configuration.

    Attributes:
        learner: Name in ``LEARNERS``, and ``options`` for its constructor.
        data, image_size, rotations: The data set and how its images are read.
        ways, shots, queries, tasks: Classes of a task, support and query images of a class, tasks
            of a meta-batch.
        width, strided, block_order, head, initialization: Of the Conv-4 backbone.
        seed: Of weights and episodes.
        iterations, optimizer, meta_lr, adam_eps, schedule, clip_value: The outer loop.
        validate_every, validation_tasks: What chooses the best checkpoint.
        note: What was left open by the sources, or differs between them.
    """

    learner: str
    data: str
    ways: int
    shots: int
    queries: int
    tasks: int
    iterations: int
    meta_lr: float
    image_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    width: int = 64
    strided: bool = True
    block_order: str = "norm_act_pool"
    head: str = "flatten"
    initialization: str | None = None
    seed: int = 0
    rotations: bool = False
    optimizer: str = "adam"
    adam_eps: float = 1e-8
    schedule: str = "constant"
    clip_value: float | None = None
    validate_every: int = 500
    validation_tasks: int = 100
    note: str = ""

    def __post_init__(self) -> None:
        names = ("block_order", "head", "initialization")
        check_fields(self, {name: {"empty": False} for name in names})

    def settings(self) -> dict[str, Any]:
        """The fields but the note: keyword arguments of a run's configuration."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del values["note"]
        return {**values, "options": dict(self.options)}


def preset(name: str) -> Preset:
    """Looks a preset up.

    Raises:
        TypeError: if the name is no text.
        ValueError: if there is none of that name; the message lists the names.
    """
    require_choice("preset", "name", name, PRESETS)
    return PRESETS[name]


def _read(text: str) -> Iterator[tuple[str, Preset]]:
    """The presets of a file by name."""
    common = tomllib.loads(text)
    for group in common.pop("preset"):
        options = {**common.get("options", {}), **group.pop("options", {})}
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
        for name in group.pop("names"):
            learner, _, size = name.split("/")
            ways, shots = (int(number) for number in re.findall(r"\d+", size))
            task = {"learner": learner, "ways": ways, "shots": shots}
            fields: dict[str, Any] = {
                "queries": shots,
                **common,
                **group,
                **task,
                "options": options,
            }
            yield name, Preset(**fields)


def _all() -> dict[str, Preset]:
    files = (entry for entry in resources.files(__name__).iterdir() if entry.name.endswith(".toml"))
    found = [pair for file in files for pair in _read(file.read_text(encoding="utf-8"))]
    return dict(sorted(found))


PRESETS: dict[str, Preset] = _all()
