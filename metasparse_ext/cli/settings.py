"""What ``--set KEY=VALUE`` says, read as the learner's constructor declares it."""

from __future__ import annotations

import ast
from types import NoneType
from typing import Any

_TYPES = {"bool": bool, "int": int, "float": int | float, "str": str, "None": NoneType}
_SEQUENCE = "Sequence["


def read(text: str, annotation: str) -> Any:
    """The value of an option.

    Args:
        text: As it was typed: a Python literal, true, false or none in any case, or a word; for a
            sequence several of them, with commas between.
        annotation: The option's, such as ``"int | None"`` or ``"Sequence[str]"``.

    Raises:
        ValueError: if the text is nothing of that type; the message says what was expected.
    """
    kinds = annotation.split(" | ")
    value = _literal(text)
    if any(_fits(value, kind) for kind in kinds):
        return value
    several = [_literal(part.strip()) for part in text.split(",") if part.strip()]
    if any(kind.startswith(_SEQUENCE) and _fits(several, kind) for kind in kinds):
        return several
    raise ValueError(f"expected {annotation}, got {text!r}")


def _fits(value: Any, kind: str) -> bool:
    if kind.startswith(_SEQUENCE):
        inner = kind.removeprefix(_SEQUENCE).removesuffix("]")
        return isinstance(value, tuple | list) and all(_fits(entry, inner) for entry in value)
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, _TYPES.get(kind, object))


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
