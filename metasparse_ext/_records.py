"""Dataclasses whose fields are checked by their annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from metasparse_ext._arguments import (
    LARGEST,
    require_count,
    require_flag,
    require_mapping,
    require_number,
    require_tensor,
    require_text,
    require_type,
)


def _require_list(owner: str, name: str, got: object) -> None:
    require_type(owner, name, got, list, "a list")


_CHECKS: dict[str, Callable[..., object]] = {
    "str": require_text,
    "int": require_count,
    "float": require_number,
    "bool": require_flag,
    "Tensor": require_tensor,
    "Mapping": require_mapping,
    "dict": require_mapping,
    "list": _require_list,
}


def check_fields(
    record: Any,
    limits: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    integers: Mapping[str, Any] = {"least": 0, "most": LARGEST},
) -> None:
    """Refuses a field that is not what its annotation says; ``X | None`` may be None.

    Args:
        record: The dataclass, from its ``__post_init__``.
        limits: Keywords of the check of a field, by its name: ``least`` and so on.
        integers: Those of every ``int`` that has none of its own.

    Raises:
        TypeError, ValueError: naming class and field.
    """
    for entry in fields(record):
        value, annotation = getattr(record, entry.name), str(entry.type)
        kind = annotation.removesuffix(" | None")
        if value is None and kind != annotation:
            continue
        kind = kind.partition("[")[0]
        limit = (limits or {}).get(entry.name, integers if kind == "int" else {})
        _CHECKS[kind](type(record).__name__, entry.name, value, **limit)


# Of the numbers of a record of metrics; each may be missing, or None where it was not finite.
_NUMBERS = ("accuracy", "active", "elapsed", "interval", "loss", "seconds")


def check_record(owner: str, record: Mapping[str, Any]) -> None:
    """Refuses a record of metrics without iteration and kind, or with a number that is none."""
    require_text(owner, "kind", record.get("kind"), empty=False)
    require_count(owner, "iteration", record.get("iteration"))
    measure = record.get("measure", "accuracy")
    require_text(owner, "measure", measure, empty=False)
    for name in (*_NUMBERS, measure):
        if record.get(name) is not None:
            require_number(owner, name, record[name])
