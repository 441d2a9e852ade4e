"""Settings in a file: the fields of a run's configuration as TOML, JSON or YAML."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metasparse_ext.cli.messages import UserError
from metasparse_ext.training import RunConfig
from metasparse_ext.training.config import FORMER


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
    except ValueError as error:  # of text that is no UTF-8, too
        raise UserError(f"{path}: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected fields with values, got {type(fields).__name__}")
    names = {entry.name for entry in dataclasses.fields(RunConfig)} | {FORMER, "grid"}
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise UserError(f"{path}: unknown field {name!r}{hint}")
    if not isinstance(fields.get("options", {}), Mapping):
        raise UserError(f"{path}: expected options to be a table, got {fields['options']!r}")
    return fields


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
    ".json": json.loads,
    ".yaml": _yaml,
    ".yml": _yaml,
}
