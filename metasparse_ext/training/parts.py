"""The parts of a run: by name, in tables or to be imported, or as objects in place of the names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from metasparse_ext import _entries
from metasparse_ext._arguments import refuse, require, require_callable, shown, typed
from metasparse_ext.algorithms import LEARNERS, MetaLearner
from metasparse_ext.algorithms.tasks import TaskFunction, accuracy
from metasparse_ext.data import DATASETS, ImageClasses, Mixture, Sinusoids
from metasparse_ext.nn import MLP, Conv4, ResNet12

if TYPE_CHECKING:
    from metasparse_ext.training.config import RunConfig

# What each part may be as an object.
Data = Callable[..., Any] | Mapping[str, Any]
Model = nn.Module | Callable[..., nn.Module]
Learner = MetaLearner | type[MetaLearner]
Optimizer = torch.optim.Optimizer | Callable[..., torch.optim.Optimizer]

MODELS: dict[str, Any] = {"conv4": Conv4, "resnet12": ResNet12, "mlp": MLP}
LOSSES: dict[str, Any] = {"mse": F.mse_loss, "mae": F.l1_loss}
METRICS: dict[str, Any] = {"accuracy": accuracy, **LOSSES}
OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
#: Data that are no images of classes; data sets by name are those of ``metasparse_ext.data.load``.
TASKS: dict[str, Any] = {"sinusoid": Sinusoids}

_TABLES: dict[str, Mapping[str, Any]] = {
    "data": TASKS,
    "model": MODELS,
    "learner": LEARNERS,
    "optimizer": OPTIMIZERS,
    "loss": LOSSES,
    "metric": METRICS,
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What came as an object where the configuration has a name; None is what it names.

    Attributes:
        data: Classes, arrays or meta-batches by split, or a function that returns those of a split.
        model: A network, or a function that returns one.
        learner: A learner, with its model, loss and metric; or a class of learners.
        optimizer: The outer optimizer, or a function that returns one.
        loss, metric: Functions of the outputs and targets of a task.
    """

    data: Data | None = None
    model: Model | None = None
    learner: Learner | None = None
    optimizer: Optimizer | None = None
    loss: TaskFunction | None = None
    metric: TaskFunction | None = None

    def check(self, owner: str) -> None:
        """Refuses an object of another kind, and what a learner that is given brings itself.

        Raises:
            TypeError, ValueError: Naming owner and argument.
        """
        if not (self.data is None or callable(self.data) or _by_split(self.data)):
            wanted = "a function of split, or a mapping from 'train', 'val' and 'test' to data"
            refuse(owner, "data", wanted, typed(self.data), TypeError)
        for name in ("model", "loss", "metric"):
            if getattr(self, name) is not None:
                require_callable(owner, name, getattr(self, name))
        kind = isinstance(self.learner, type) and issubclass(self.learner, MetaLearner)
        if not (self.learner is None or kind or isinstance(self.learner, MetaLearner)):
            refuse(
                owner,
                "learner",
                "a MetaLearner, or a class of them",
                typed(self.learner),
                TypeError,
            )
        if not isinstance(self.optimizer, torch.optim.Optimizer | None):
            wanted = "an optimizer, or a function that returns one"
            require_callable(owner, "optimizer", self.optimizer, wanted)
        for name in ("model", "loss", "metric") if self.has_learner else ():
            got = getattr(self, name)
            require(got is None, owner, name, "None beside a learner, which has its own", got)

    @property
    def has_learner(self) -> bool:
        """Whether the learner is built already."""
        return isinstance(self.learner, MetaLearner)

    @property
    def kind(self) -> type[MetaLearner] | None:
        """The class of learners that is given, if it is one."""
        return self.learner if isinstance(self.learner, type) else None

    def labelled(self, config: RunConfig) -> RunConfig:
        """The configuration that says what is given, in place of its names.

        Raises:
            ValueError: If it has other options than a learner that is built already.
        """
        labels: dict[str, Any] = {name: _label(name, part) for name, part in self.given().items()}
        if self.has_learner:
            wanted, own = "empty beside a learner, which has its own", self.options()
            fits = not config.options or dict(config.options) == own
            require(fits, "RunConfig", "options", wanted, dict(config.options))
            labels["options"] = own
            parts = {name: getattr(self.learner, name) for name in ("model", "loss", "metric")}
            labels |= {n: None if p is None else _label(n, p) for n, p in parts.items()}
        return config.replace(**labels)

    def options(self) -> dict[str, Any]:
        """Those that the learner that is built, if any, was made with, as JSON values."""
        made_with = self.learner.made_with if isinstance(self.learner, MetaLearner) else {}
        return {name: _json(value) for name, value in made_with.items()}

    def given(self) -> dict[str, Any]:
        """The objects by name."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: part for name, part in named.items() if part is not None}

    def require_all(self, owner: str, config: RunConfig, *, but: Collection[str] = ()) -> None:
        """Refuses to do without an object that has no name, and takes no other in its place.

        Args:
            owner: Who asks.
            config: That of a run.
            but: Parts that may be missing, or others.

        Raises:
            ValueError: Naming the argument, and what the run was trained with.
        """
        own = {"model", "loss", "metric"} if self.has_learner else set()
        for name in (each for each in _TABLES if each not in {*own, *but}):
            part, was = getattr(self, name), getattr(config, name)
            if part is not None and _label(name, part) != was:
                refuse(owner, name, f"{was}, as the run was trained with", _label(name, part))
            if part is None and was is not None and _entries.is_label(was):
                wanted = f"given, because the run was trained with an object, {was}"
                refuse(owner, name, f"{wanted}, which has no name to import it by", "None")
        # Runs of earlier versions do not say the options of a learner that came as an object.
        if self.has_learner and config.options:
            was, now = dict(config.options), self.options()
            differ = [n for n in {**was, **now} if was.get(n) != now.get(n)]
            texts = (", ".join(f"{n}={each.get(n)!r}" for n in differ) for each in (was, now))
            wanted, got = texts
            if differ:
                refuse(owner, "learner", f"one of {wanted}, as the run was trained with", got)

    def require_for(self, owner: str, config: RunConfig, *, data: bool = True) -> RunConfig:
        """The configuration of a run that is evaluated with what is given.

        Args:
            owner: Who asks.
            config: That of the run.
            data: Whether data are needed. They may be others than the run's.

        Raises:
            ValueError: If an object is missing that the run was trained with, or is another.
        """
        if self.data is not None:
            config = config.replace(data=_label("data", self.data))
        self.require_all(owner, config, but={"optimizer"} if data else {"optimizer", "data"})
        return config


def find(config: RunConfig, part: str, kind: str = "function") -> Any:
    """What the configuration names as one of the parts.

    Raises:
        ValueError: If there is no such entry, or it cannot be imported.
        TypeError: If it is nothing that can be called.
    """
    name = getattr(config, part)
    found = _entries.find("RunConfig", part, name, _TABLES[part], kind)
    require_callable("RunConfig", part, found, f"{shown(name)}, something to call")
    return found


def require_parts(config: RunConfig) -> None:
    """Refuses a configuration that names a part which cannot be imported.

    Raises:
        TypeError, ValueError: Naming the field.
    """
    for part in _TABLES.keys() - {"learner"}:
        name = getattr(config, part)
        if name is not None and _entries.is_import(name) and name.partition(":")[0] not in DATASETS:
            find(config, part)


def check_names(config: RunConfig) -> None:
    """Refuses a part of a name that no part can have.

    Raises:
        TypeError, ValueError: Naming the field.
    """
    for part in ("model", "optimizer", "loss", "metric"):
        name = getattr(config, part)
        if name is not None:
            _entries.check_name("RunConfig", part, name, _TABLES[part])


def _by_split(given: Any) -> bool:
    return isinstance(given, Mapping) and bool(given) and set(given) <= {"train", "val", "test"}


def _json(value: Any) -> Any:
    """An option as JSON has it; of what it has not, a label."""
    if isinstance(value, tuple | list):
        return [_json(each) for each in value]
    plain = value is None or isinstance(value, str | bool | int | float)
    return value if plain else _entries.label(value)


def _label(name: str, part: Any) -> str:
    if name == "data":
        part = next(iter(part.values())) if isinstance(part, Mapping) else part
        if isinstance(part, (ImageClasses, Mixture)):
            return f"<{part.name}>"
        if isinstance(part, tuple | list):
            return "<arrays>" if isinstance(part, tuple) else "<batches>"
    if isinstance(part, nn.Module) or name not in _TABLES:
        return f"<{type(part).__module__}.{type(part).__qualname__}>"
    return _entries.label(part, _TABLES[name])
