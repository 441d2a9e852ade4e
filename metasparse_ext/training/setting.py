"""What an evaluation is on: data, split, kind of task and how many; and its name."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from metasparse_ext._arguments import (
    LARGEST,
    refuse,
    require,
    require_choice,
    require_count,
    require_flag,
    require_text,
)
from metasparse_ext._records import check_fields
from metasparse_ext.data.registry import absolute
from metasparse_ext.training.config import SPLITS, RunConfig

_LEAST = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, "adapt_steps": 0}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The tasks of an evaluation.

    Attributes:
        data: The data set, as a run names it.
        split: ``train``, ``val`` or ``test``.
        ways, shots, queries: Classes of a task; support and query images of each class.
        tasks: How many tasks, where they are drawn.
        transductive: Whether batch statistics are taken over the whole query set.
        every_set: Whether there is one task of every set of classes.
    """

    data: str
    split: str
    ways: int
    shots: int
    queries: int
    tasks: int
    transductive: bool
    every_set: bool = False

    def __post_init__(self) -> None:
        check_fields(self, integers={"least": 1, "most": LARGEST})

    @classmethod
    def of(cls, config: RunConfig, *, split: str = "test", **given: Any) -> Setting:
        """The run's own setting on a split, but for what is given and not None.

        Raises:
            TypeError, ValueError: If one cannot be, or is more ways than the network has outputs.
        """
        check_setting("evaluate_run", split=split, **given)
        if given.get("ways") is not None:
            expected = f"at most {config.ways}, the outputs of the network"
            require(given["ways"] <= config.ways, "evaluate_run", "ways", expected, given["ways"])
        own: dict[str, Any] = {
            **{name: getattr(config, name) for name in ("data", "ways", "shots", "transductive")},
            "queries": config.evaluation_queries or config.queries,
            "tasks": config.evaluation_tasks,
        }
        if given.get("every_set") and given.get("tasks") is not None:
            expected = "None, as one task of every set of classes is asked for"
            refuse("evaluate_run", "tasks", expected, given["tasks"])
        chosen = {name: value for name, value in given.items() if value is not None}
        if "data" in chosen and absolute(chosen["data"]) == absolute(config.data):
            del chosen["data"]  # the run's own, by another path
        return cls(split=split, **{**own, **chosen})

    def __str__(self) -> str:
        return f"{self.ways}-way {self.shots}-shot, {self.data} {self.split} classes"

    @property
    def tasks_in_words(self) -> str:
        """How many tasks, in words."""
        return "one task of every set of classes" if self.every_set else f"{self.tasks} tasks"

    def name(self, config: RunConfig, adapt_steps: int | None = None, episodes: str = "") -> str:
        """The split, and what differs from the run's own setting: the name of a file.

        Args:
            config: The run's configuration.
            adapt_steps: The steps of adaptation, if they are not the run's own.
            episodes: A digest of the tasks, if their data have no name and are not the run's own.
        """
        own = dataclasses.asdict(Setting.of(config, split=self.split))
        kind = "transductive" if self.transductive else "not-transductive"
        words = {
            "data": _word(self.data.strip("<>") if episodes else self.data),
            "ways": f"{self.ways}way",
            "shots": f"{self.shots}shot",
            "queries": f"{self.queries}query",
            "tasks": f"{self.tasks}tasks",
            "transductive": kind,
            "every_set": "every-set",
        }
        differ = [words[name] for name in words if getattr(self, name) != own[name]]
        steps = [] if adapt_steps is None else [f"{adapt_steps}steps"]
        digest = [episodes[:8]] if episodes else []
        return "-".join([self.split, *differ, *steps, *digest])


def check_setting(owner: str, *, split: Any, **given: Any) -> None:
    """Refuses what cannot be part of a setting, or steps of adaptation that cannot be; None may.

    Raises:
        TypeError, ValueError: naming it.
    """
    require_choice(owner, "split", split, SPLITS)
    for name, value in given.items():
        if value is None:
            continue
        if name == "data":
            require_text(owner, name, value, empty=False)
        elif name in ("transductive", "every_set"):
            require_flag(owner, name, value)
        else:
            require_count(owner, name, value, least=_LEAST[name], most=LARGEST)


def _word(data: str) -> str:
    """A data set as part of a file's name, another one for each."""
    plain = re.sub(r"[^\w.+-]", "_", data)[-40:]
    return plain if plain == data else f"{plain}-{hashlib.sha256(data.encode()).hexdigest()[:8]}"
