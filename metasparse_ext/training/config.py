"""What a run is made of: one frozen value that a file can hold and a resumed run can be held to."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BACKBONES = ("conv4", "resnet12")
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "staircase")
ON_NONFINITE = ("stop", "skip", "halve")

# What a resumed run may change without changing its numbers.
_FREE = {"root", "init_from", "save_every", "evaluation_tasks", "workers", "capture"}

# A rate above it takes every float32 weight out of range in a few steps.
_LARGEST_RATE = 1e6
# torch's generators take no seed from here on.
_SEEDS = 1 << 63

# By the annotation of a field: what its value may be.
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Mapping[str, Any]": (Mapping,),
}

_POSITIVE = (
    "ways",
    "shots",
    "queries",
    "tasks",
    "iterations",
    "width",
    "validate_every",
    "validation_tasks",
    "evaluation_tasks",
    "save_every",
    "log_every",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run.

    Attributes:
        learner: Name in ``metasparse_ext.algorithms.LEARNERS``, or ``package.module:Class``.
        options: Keyword arguments of the learner's constructor.
        preset: Name of the preset that the run started from, for the record.
        init_from: Run folder whose best network is the starting point (a dense pre-training).
        data, root, image_size, rotations: The data set and how its images are read.
        ways, shots, queries, tasks: Classes per task, support and query images per class, tasks
            per meta-batch.
        backbone: ``conv4`` or ``resnet12``.
        width: Channels of Conv-4's blocks, or of ResNet-12's first.
        strided: Of Conv-4: stride 2, or stride 1 with 2x2 max-pool.
        seed: Seeds the initial weights and the episodes.
        iterations: Meta-iterations of a training.
        max_seconds: Where given, training takes so many seconds of processor time (on a GPU,
            seconds) instead, its steps alone counted, and the schedule follows them.
        optimizer, meta_lr, mask_lr, adam_eps, schedule: The outer loop. ``mask_lr`` is the rate of
            mask scores and, where None, that of the weights. Schedules: constant, cosine and linear
            to 0, and staircase, 0.9 times as much after every twelfth of the training (CAVIA's).
        clip_norm, clip_value: Gradient clipping by total norm, or by element.
        on_nonfinite: What a meta-step does after which a loss, the meta-gradient, a parameter or
            the optimizer's state is not finite: "stop" ends the run with an error, and the last
            checkpoint stays; "skip" undoes the meta-step and goes on with the next; "halve" does
            that and halves the rates of the outer loop for the rest of the run.
        validate_every, validation_tasks, validation_split: The fixed tasks that choose the best
            checkpoint.
        evaluation_tasks: Tasks of ``metasparse evaluate``.
        evaluation_queries: Query images per class of validation and evaluation; those of training
            where None.
        transductive: Whether batch statistics are taken over the whole query set, as the
            published codes do; otherwise each query image is classified beside the support set.
        save_every: Iterations between two writes of ``last.safetensors``.
        log_every: Iterations between two lines of ``metrics.jsonl``.
        workers: Threads that draw episodes ahead; the episodes do not depend on it.
        device: A torch device.
        capture: On a GPU, replay the meta-step as one CUDA graph; the numbers do not depend on it.
    """

    learner: str
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    init_from: str | None = None
    data: str = "glyphs"
    root: str | None = None
    image_size: int | None = None
    rotations: bool = False
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 4
    backbone: str = "conv4"
    width: int = 64
    strided: bool = True
    seed: int = 0
    iterations: int = 10_000
    max_seconds: float | None = None
    optimizer: str = "adam"
    meta_lr: float = 1e-3
    mask_lr: float | None = None
    adam_eps: float = 1e-8
    schedule: str = "constant"
    clip_norm: float | None = None
    clip_value: float | None = None
    on_nonfinite: str = "stop"
    validate_every: int = 500
    validation_tasks: int = 100
    validation_split: str = "val"
    evaluation_tasks: int = 600
    evaluation_queries: int | None = None
    transductive: bool = True
    save_every: int = 100
    log_every: int = 1
    workers: int = 0
    device: str = "cpu"
    capture: bool = True

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number from 1, got {value!r}")
        for entry in dataclasses.fields(self):
            _require_type(entry.name, getattr(self, entry.name), str(entry.type))
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.seed >= _SEEDS:
            raise ValueError(f"seed: expected at most 2**63 - 1, got {self.seed}")
        if not 0 <= self.adam_eps < math.inf:
            raise ValueError(f"adam_eps: expected a number from 0, got {self.adam_eps!r}")
        held_out = self.evaluation_queries
        if held_out is not None and held_out < 1:
            raise ValueError(f"evaluation_queries: expected None or at least 1, got {held_out}")
        if self.ways < 2:
            raise ValueError(f"ways: expected at least 2 classes per task, got {self.ways}")
        _require_choice("backbone", self.backbone, BACKBONES)
        _require_choice("optimizer", self.optimizer, OPTIMIZERS)
        _require_choice("schedule", self.schedule, SCHEDULES)
        _require_choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        for name in ("clip_norm", "clip_value", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")
        for name in ("meta_lr", "mask_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= _LARGEST_RATE:
                raise ValueError(
                    f"{name}: expected a number above 0 and at most {_LARGEST_RATE:g}, "
                    f"got {value!r}"
                )
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("clip_norm and clip_value: expected one of them at most, got both")

    def replace(self, **changes: Any) -> RunConfig:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values, in which a tuple is a list."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Returns the JSON text that :meth:`from_json` reads."""
        fields = {**dataclasses.asdict(self), "options": dict(self.options)}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Builds a configuration from JSON values.

        Raises:
            ValueError: If a field is unknown, missing or out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"run configuration: expected a JSON object, got {values!r}"[:200])
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"run configuration: unknown field {', '.join(unknown)}")
        if "learner" not in values:
            raise ValueError("run configuration: no learner is named")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Reads what :meth:`to_json` wrote."""
        return cls.from_dict(json.loads(text))

    def differences(self, other: RunConfig) -> list[str]:
        """Names the fields in which another configuration differs."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [name for name in mine if mine[name] != theirs[name]]

    def mending_changes(self, begun: RunConfig, run: str) -> list[tuple[str, Any, Any]]:
        """What differs from the configuration that a run was begun with, to mend its numbers.

        A run that goes on must be given the configuration it was begun with. Fields on which the
        numbers do not depend may differ, a constant schedule may grow longer, and what mends a run
        that was not finite is taken too: its numbers are no longer those of a run that was never
        stopped.

        Args:
            begun: That configuration.
            run: How errors name the run.

        Returns:
            Name, former and present value of each change of the last kind.

        Raises:
            ValueError: If another field differs.
        """
        free = _FREE | {"iterations", "max_seconds"} if begun.schedule == "constant" else _FREE
        changes = []
        for name in begun.differences(self):
            if name in free:
                continue
            was, now = getattr(begun, name), getattr(self, name)
            if not _mends(name, was, now):
                raise ValueError(f"{run} was begun with {name} = {was!r}, got {now!r}")
            changes.append((name, was, now))
        return changes


def _require_type(name: str, value: Any, annotation: str) -> None:
    kind = annotation.removesuffix(" | None")
    if value is None and kind != annotation:
        return
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, _KINDS[kind]):
        raise ValueError(f"{name}: expected {annotation}, got {value!r}"[:200])


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _mends(name: str, was: Any, now: Any) -> bool:
    """Whether a change is one that may help a run whose numbers were not finite."""
    if name == "on_nonfinite":
        return True
    if name in ("meta_lr", "mask_lr"):
        return was is not None and now is not None and now < was
    return name == "clip_norm" and now is not None
