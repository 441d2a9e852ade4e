"""What the stress program runs: each attack tries many cases and tells which of them fail.

Another module adds its own with the decorator :func:`attack`, and its name to MODULES.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

MODULES = ("support.differential", "support.run_attacks")


class Result(NamedTuple):
    """How many cases ran, and what is wrong with those that failed: text that reproduces each."""

    cases: int
    failures: list[str]


# (seed, cases to try) -> what came of them
Attack = Callable[[int, int], Result]

_ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    """Registers a function as the attack ``name``."""

    def register(function: Attack) -> Attack:
        if name in _ATTACKS:
            raise ValueError(f"attack: {name!r} is registered already")
        _ATTACKS[name] = function
        return function

    return register


def attacks() -> dict[str, Attack]:
    """Every attack by name."""
    for module in MODULES:
        importlib.import_module(module)
    return dict(_ATTACKS)
