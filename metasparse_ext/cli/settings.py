"""Settings in a file: the fields of a run's configuration as TOML, JSON or YAML."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import itertools
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metasparse_ext._json import parse
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.cli.messages import UserError
from metasparse_ext.cli.options import learner_options
from metasparse_ext.training import RunConfig
from metasparse_ext.training.config import FORMER

_LONGEST = 200  # characters of the name of a file


def read_settings(path: Path) -> dict[str, Any]:
    """The fields of a run's configuration, and ``grid``, as a file has them.

    Args:
        path: ``*.toml``, ``*.json`` (also the ``config.json`` of a run), or, where PyYAML is
            installed, ``*.yaml`` and ``*.yml``.

    Raises:
        UserError: If the file cannot be read, or has a field that there is not.
    """
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise UserError(f"{path}: expected a file whose suffix is one of {', '.join(_READERS)}")
    try:
        fields = _READERS[kind](path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of text that is no UTF-8, too
        raise UserError(f"{path}: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected fields with values, got {type(fields).__name__}")
    _require_known(path, fields, fields.get("learner"))
    if not isinstance(fields.get("options", {}), Mapping):
        raise UserError(f"{path}: expected options to be a table, got {fields['options']!r}")
    return fields


def _require_known(path: Path, fields: Mapping[str, Any], learner: Any) -> None:
    """Refuses a field that there is not, and says which may be meant."""
    names = {entry.name for entry in dataclasses.fields(RunConfig)} | {FORMER, "grid"}
    for name in fields:
        if name in names:
            continue
        near = difflib.get_close_matches(str(name), names, 1)
        if name in _options(learner):
            hint = f": an option of the learner is options.{name}, or {name} below [options]"
        else:
            hint = f": did you mean {near[0]}?" if near else ""
        raise UserError(f"{path}: unknown field {name!r}{hint}")


def _options(learner: Any) -> set[str]:
    """The options of a learner of ours or, where it is another or none is named, of them all."""
    ours = isinstance(learner, str) and learner in LEARNERS
    kinds = [LEARNERS[learner]] if ours else LEARNERS.values()
    return {name for kind in kinds for name in learner_options(kind)}


@dataclass(frozen=True)
class Setting:
    """One combination of a grid.

    Attributes:
        name: Of its folder.
        fields: Those of the file, with the grid's.
        label: The values of the grid, by column of a table.
    """

    name: str
    fields: Mapping[str, Any]
    label: Mapping[str, str]


def settings_of(path: Path, settings: Mapping[str, Any], given: Mapping[str, Any]) -> list[Setting]:
    """Every combination of the lists of a file's grid.

    Args:
        path: The file, for messages.
        settings: What is in it: fields, and under ``grid`` lists of their values; those of the
            learner's options in a table ``options`` there.
        given: The flags that were given, which the grid does not vary.

    Raises:
        UserError: If the grid is none, or two combinations have one name.
    """
    fields = {name: value for name, value in settings.items() if name != "grid"}
    axes = _axes(path, settings.get("grid"), settings.get("learner"))
    for (_, name), _ in axes:
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{path}: {flag} was given, and {name} is in the grid")
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = dict(zip((axis for axis, _ in axes), values, strict=True))
        label = {name: str(value) for (_, name), value in chosen.items()}
        options = {name: v for (of_learner, name), v in chosen.items() if of_learner}
        own = {name: v for (of_learner, name), v in chosen.items() if not of_learner}
        joined = {**fields, **own, "options": {**fields.get("options", {}), **options}}
        found.append(Setting(_folder(label), joined, label))
    if len({setting.name for setting in found}) < len(found):
        raise UserError(f"{path}: expected every setting of the grid to be another one")
    return found


# Whether it is an option of the learner, and its name; and its values.
_Axis = tuple[tuple[bool, str], list[Any]]


def _axes(path: Path, grid: Any, learner: Any) -> list[_Axis]:
    wanted = f"{path}: expected a table [grid] of lists"
    if not isinstance(grid, Mapping) or not grid:
        raise UserError(f"{wanted}, got {'none' if grid is None else repr(grid)}")
    _require_known(path, grid, learner)
    options = grid.get("options", {})
    if not isinstance(options, Mapping):
        raise UserError(f"{wanted}, options in a table of its own, got {options!r}")
    axes = [((False, name), values) for name, values in grid.items() if name != "options"]
    axes += [((True, name), values) for name, values in options.items()]
    for (_, name), values in axes:
        if not isinstance(values, list) or not values:
            raise UserError(f"{wanted}, got {name} = {values!r}")
    return axes


def _folder(label: Mapping[str, str]) -> str:
    """The name of a folder for a setting, without what names of files cannot have."""
    text = ",".join(f"{name}={value}" for name, value in label.items())
    return re.sub(r"[^\w.,=+-]+", "-", text)[:_LONGEST]


def _yaml(text: str) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise ValueError("PyYAML is not installed, which reads YAML; TOML needs nothing") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


_READERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": parse,
    ".yaml": _yaml,
    ".yml": _yaml,
}
