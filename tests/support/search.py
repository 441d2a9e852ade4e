"""Looks for a draw that fails, and for the smallest such draw."""

import atexit
from functools import cache

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import FlakyFailure
from hypothesis.strategies import SearchStrategy

from support.attacks import Result, attack
from support.machine import Workers, reproduction

# Of an attack. A search ends at its first failure: others are found by those that start elsewhere.
ROUND = 250


class DrawFailed(AssertionError):
    """A draw whose result is wrong: what went wrong, and a command that shows it."""


def search(strategy: SearchStrategy, workers: Workers, start: int, draws: int) -> str | None:
    """The smallest failing draw found among ``draws``, as text, or None.

    ``start`` seeds the draws: the same ones come for the same seed.
    """

    @seed(start)
    @settings(
        max_examples=draws,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    @given(strategy)
    def run(draw) -> None:
        wrong = workers.check(draw)
        if wrong is not None:
            raise DrawFailed(f"{wrong.rstrip()}\n  {reproduction(draw)}")

    try:
        run()
    except DrawFailed as failure:
        return str(failure)
    except FlakyFailure as failure:
        return f"at times, {failure.exceptions[0]}"
    return None


def attack_by_search(name: str, strategy: SearchStrategy) -> None:
    """Registers searches of a strategy's draws as the attack ``name``."""

    @attack(name, round=ROUND)
    def tries(seed: int, draws: int) -> Result:
        found = search(strategy, _workers(), seed, draws)
        return Result(draws, [] if found is None else [found])


@cache
def _workers() -> Workers:
    """Those of all searches of this process."""
    workers = Workers()
    atexit.register(workers.close)
    return workers
