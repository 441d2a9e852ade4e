"""What the stress program runs: each attack tries many cases and tells which of them fail.

Another module adds its own with the decorator :func:`attack`, and its name to MODULES.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

MODULES = ("support.differential", "support.broken_files", "support.run_attacks")


class Result(NamedTuple):
    """How many cases ran, and what is wrong with those that failed: text that reproduces each."""

    cases: int
    failures: list[str]


# (seed, cases to try) -> what came of them
Tries = Callable[[int, int], Result]


class Attack(NamedTuple):
    """A function, and how many cases it is to try at once; None: all that are asked for."""

    run: Tries
    round: int | None


_ATTACKS: dict[str, Attack] = {}


def attack(name: str, *, round: int | None) -> Callable[[Tries], Tries]:
    """Registers a function as the attack ``name``; rounds of its cases may run side by side."""

    def register(function: Tries) -> Tries:
        if name in _ATTACKS:
            raise ValueError(f"attack: {name!r} is registered already")
        _ATTACKS[name] = Attack(function, round)
        return function

    return register


def attacks() -> dict[str, Attack]:
    """Every attack by name."""
    for module in MODULES:
        importlib.import_module(module)
    return dict(_ATTACKS)
