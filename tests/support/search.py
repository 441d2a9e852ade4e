"""Looks for a draw that fails, and for the smallest such draw."""

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

from support.machine import Workers, reproduction


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
    return None
