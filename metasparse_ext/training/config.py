"""What a run is made of: one frozen value that a file can hold and a resumed run can be held to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metasparse_ext._arguments import (
    LARGEST,
    refuse,
    require,
    require_choice,
    require_mapping,
    require_type,
)
from metasparse_ext._entries import is_label
from metasparse_ext._json import parse
from metasparse_ext._records import check_fields
from metasparse_ext.data.augment import augment_of
from metasparse_ext.nn.backbone import HeadInput
from metasparse_ext.nn.initial import INITIALIZATIONS
from metasparse_ext.nn.norm import Order
from metasparse_ext.training import parts
from metasparse_ext.training.memory import budget_of

SCHEDULES = ("constant", "cosine", "linear", "staircase")
ON_NONFINITE = ("stop", "skip", "halve")
SPLITS = ("train", "val", "test")

# What files of earlier versions call the model.
FORMER = "backbone"

# What a resumed run may change without changing its numbers.
_FREE = {"root", "init_from", "save_every", "evaluation_tasks", "workers", "capture"}

# A rate above it takes every float32 weight out of range in a few steps.
_LARGEST_RATE = 10**6
# torch's generators take no seed from here on.
_SEEDS = 1 << 63

_POSITIVE = {"least": 1, "most": LARGEST}
_ABOVE_0 = {"above": 0}
_RATE = {"above": 0, "most": _LARGEST_RATE}
_NAMED = {"empty": False}
_LIMITS: dict[str, dict[str, Any]] = {
    "ways": {"least": 2, "most": LARGEST},
    "seed": {"least": 0, "most": _SEEDS - 1},
    "workers": {"least": 0, "most": LARGEST},
    "adam_eps": {"least": 0},
    **dict.fromkeys(("clip_norm", "clip_value", "max_seconds"), _ABOVE_0),
    **dict.fromkeys(("meta_lr", "mask_lr"), _RATE),
    **dict.fromkeys(("learner", "init_from", "data", "root", "device"), _NAMED),
    **dict.fromkeys(("model", "optimizer", "loss", "metric"), _NAMED),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run.

    Learner, data, model, optimizer, loss and metric are named: by a name of ours, or by
    ``package.module:attribute``, which is imported. Of a part that came as an object and cannot be
    imported, the name is ``<module.Name>``.

    Attributes:
        learner: Name in ``metasparse_ext.algorithms.LEARNERS``, or ``package.module:Class``.
        options: Keyword arguments of the learner's constructor.
        preset: Name of the preset that the run started from, for the record.
        init_from: Run folder whose best network is the starting point (a dense pre-training).
        data, root, image_size, rotations: The data set and how its images are read; or
            ``sinusoid``; or a function that returns the data of a split.
        augment: Random changes of the training images, those of ``data.Augment`` as a text, such as
            "padding=4,flip,brightness=0.4".
        ways, shots, queries, tasks: Classes per task, support and query images per class, tasks
            per meta-batch.
        model: ``conv4``, ``resnet12``, ``mlp``, or a function that returns a network; by default
            ``conv4``, and ``mlp`` where inputs are no images.
        loss: What tasks minimize in place of the cross-entropy: ``mse``, ``mae``, or a function of
            the outputs and targets of a task; by default ``mse`` for sinusoids.
        metric: What is reported in place of accuracy, a function like the loss. More of it is
            better, but of ``mse`` and ``mae`` less. A run with a loss and no metric is judged by
            its loss.
        width: Channels of Conv-4's blocks, or of ResNet-12's first.
        strided: Of Conv-4: stride 2, or stride 1 with 2x2 max-pool.
        block_order: Of Conv-4: norm, activation and pool of a block, as in ``nn.NormActPool``.
        head: Of Conv-4 and ResNet-12: "flatten" feeds the head the whole last map, "mean" its
            spatial mean.
        initialization: The initial weights, by a name of ``nn.initialize``; the model's own where
            None.
        seed: Seeds the initial weights and the episodes.
        iterations: Meta-iterations of a training.
        max_seconds: Where given, training takes so many seconds of processor time (on a GPU,
            seconds) instead, its steps alone counted, and the schedule follows them.
        optimizer, meta_lr, mask_lr, adam_eps, schedule: The outer loop: ``adam``, ``sgd``, or a
            function that returns an optimizer, such as ``torch.optim:AdamW``. ``mask_lr`` is the
            rate of mask scores and, where None, that of the weights. Schedules: constant, cosine
            and linear to 0, and staircase, 0.9 times as much after every twelfth of the training
            (CAVIA's).
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
        memory: A budget such as "2GiB", of the process or, on a GPU, of torch's tensors: as many
            tasks are computed at a time as fit into it, by what the meta-gradients of one task and
            of two are measured to take. Numbers depend on it by rounding alone.
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
    augment: str | None = None
    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 4
    model: str | None = None
    loss: str | None = None
    metric: str | None = None
    width: int = 64
    strided: bool = True
    block_order: str = "norm_act_pool"
    head: str = "flatten"
    initialization: str | None = None
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
    memory: str | None = None
    capture: bool = True

    def __post_init__(self) -> None:
        check_fields(self, _LIMITS, integers=_POSITIVE)
        parts.check_names(self)
        if self.memory is not None:
            budget_of("RunConfig", "memory", self.memory)
        if self.augment is not None:
            augment_of("RunConfig", "augment", self.augment)
        require_choice("RunConfig", "block_order", self.block_order, Order)
        require_choice("RunConfig", "head", self.head, HeadInput)
        if self.initialization is not None:
            require_choice("RunConfig", "initialization", self.initialization, INITIALIZATIONS)
        require_choice("RunConfig", "schedule", self.schedule, SCHEDULES)
        require_choice("RunConfig", "on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        require_choice("RunConfig", "validation_split", self.validation_split, SPLITS)
        if self.clip_norm is not None and self.clip_value is not None:
            refuse("RunConfig", "clip_norm and clip_value", "one of them at most", "both")
        for name, value in self._fields().items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                refuse("RunConfig", name, "of values that JSON has", str(error), TypeError)

    def replace(self, **changes: Any) -> RunConfig:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values, in which a tuple is a list."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Returns the JSON text that :meth:`from_json` reads."""
        return json.dumps(self._fields(), indent=2) + "\n"

    def _fields(self) -> dict[str, Any]:
        return {**vars(self), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Builds a configuration from JSON values.

        Raises:
            TypeError: If a field has another type.
            ValueError: If a field is unknown, missing or out of range.
        """
        require_mapping("RunConfig", "values", values)
        if FORMER in values:
            values = {"model": values[FORMER], **{k: v for k, v in values.items() if k != FORMER}}
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        require(not unknown, "RunConfig", "values", "of known fields", unknown)
        require("learner" in values, "RunConfig", "learner", "among the values", sorted(values))
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Reads what :meth:`to_json` wrote."""
        require_type("RunConfig", "text", text, (str, bytes), "text")
        return cls.from_dict(parse(text))

    def differences(self, other: RunConfig) -> list[str]:
        """Names the fields in which another configuration differs."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [name for name in mine if mine[name] != theirs[name]]

    def mending_changes(self, begun: RunConfig, run: str) -> list[tuple[str, Any, Any]]:
        """What differs from the configuration that a run was begun with, to mend its numbers.

        A run that goes on must be given the configuration it was begun with. Fields on which the
        numbers do not depend may differ, a constant schedule may grow longer, and what mends a run
        that was not finite, or short of memory or of validation tasks, is taken too: its numbers
        are no longer those of a run that was never stopped.

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
            if name == "options" and not was and is_label(begun.learner):
                continue  # earlier versions did not say those of a learner that came as an object
            if not _mends(name, was, now):
                raise ValueError(f"{run} was begun with {name} = {was!r}, got {now!r}")
            changes.append((name, was, now))
        return changes


def _mends(name: str, was: Any, now: Any) -> bool:
    """Whether a change may help a run that was not finite, or short of memory or of tasks."""
    if name in ("on_nonfinite", "memory", "validation_tasks"):
        return True
    if name in ("meta_lr", "mask_lr"):
        return was is not None and now is not None and now < was
    return name == "clip_norm" and now is not None
