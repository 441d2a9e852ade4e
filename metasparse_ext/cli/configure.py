"""From the options of ``metasparse train`` to the configuration of a run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from metasparse_ext.algorithms import LEARNERS, PRESETS
from metasparse_ext.cli.messages import UserError, checked, known
from metasparse_ext.cli.settings import read
from metasparse_ext.training import RunConfig

# Options of learners that have a flag of their own.
_LEARNER_FLAGS = (
    *("inner_lr", "inner_steps", "mode", "budget", "lambda3"),
    *("search", "density", "rounds", "rewind"),
)


def preset_fields(learner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the preset that was named; a ramp follows the iterations where they change."""
    if "preset" not in given:
        return {}
    name = known("preset", given["preset"], PRESETS)
    fields = PRESETS[name].settings()
    if fields["learner"] != learner:
        raise UserError(f"preset {name} is of {fields['learner']}, not of {learner}")
    if "iterations" in given and fields["options"].get("total_iterations") == fields["iterations"]:
        del fields["options"]["total_iterations"]
    return fields


def configure(learner: str, given: Mapping[str, Any], base: Mapping[str, Any]) -> RunConfig:
    """The configuration ``base`` with the flags that were given."""
    kind = LEARNERS[known("learner", learner, LEARNERS)]
    options = {**base.get("options", {}), **_chosen_options(learner, kind, given)}
    names = {entry.name for entry in dataclasses.fields(RunConfig)}
    fields = {name: value for name, value in given.items() if name in names}
    return checked(lambda: RunConfig(**{**base, **fields, "learner": learner, "options": options}))


def _chosen_options(learner: str, kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The learner's options among the flags, checked against its constructor."""
    chosen = {name: given[name] for name in _LEARNER_FLAGS if name in given}
    if "order" in given:
        chosen["first_order"] = given["order"] == "first"
    settings = dict(_setting(text) for text in given.get("settings", ()))
    options = learner_options(kind)
    for name in (*chosen, *settings):
        if name not in options:
            flag = "--order" if name == "first_order" and name in chosen else name
            raise UserError(f"{learner} has no option {flag}; it has {', '.join(options)}")
    for name, text in settings.items():
        try:
            chosen[name] = read(text, str(options[name].annotation))
        except ValueError as error:
            raise UserError(f"{learner}: {name}: {error}") from error
    return chosen


def learner_options(kind: type) -> dict[str, Parameter]:
    """The keyword arguments of the constructor, by name."""
    parameters = inspect.signature(kind).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def _setting(text: str) -> tuple[str, str]:
    """KEY=VALUE in two; dashes in a key are underscores."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set: expected KEY=VALUE, got {text!r}")
    return key.strip().replace("-", "_"), value.strip()
