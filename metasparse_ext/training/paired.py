"""The paired t-test: two learners on the same tasks, by the differences of their accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from metasparse_ext._arguments import require

# Halvings of an interval that floating point can tell apart.
_HALVINGS = 200
_TERMS = 500
_TINY = 1e-300


@dataclass(frozen=True)
class Difference:
    """What a paired test found.

    Attributes:
        mean: Of the second's numbers less the first's.
        interval: Half the 95 % confidence interval of that mean, by Student's t.
        p: Two-sided p-value of there being no difference.
        count: How many pairs.
    """

    mean: float
    interval: float
    p: float
    count: int


def paired_test(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Tests whether the second's numbers differ from the first's, pair by pair.

    Raises:
        ValueError: If there are not as many of both, or fewer than two.
    """
    require(
        len(first) == len(second), "paired_test", "second", f"{len(first)} numbers", len(second)
    )
    require(len(first) > 1, "paired_test", "first", "at least 2 numbers", len(first))
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean, count = fmean(differences), len(differences)
    error = stdev(differences) / math.sqrt(count)
    if error == 0:
        return Difference(mean, 0.0, float(mean == 0), count)
    t = mean / error
    return Difference(mean, t_quantile(0.975, count - 1) * error, two_sided_p(t, count - 1), count)


def two_sided_p(t: float, freedom: int) -> float:
    """The probability that Student's t is as far from 0 as this, or farther."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(probability: float, freedom: int) -> float:
    """Student's t that is not exceeded with a probability above one half."""
    wanted = 2 * (1 - probability)
    high = 1.0
    while two_sided_p(high, freedom) > wanted:
        high *= 2
    return _bisected(lambda t: two_sided_p(t, freedom) > wanted, high)


def _bisected(below: Callable[[float], bool], high: float) -> float:
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the other tail converges
        return 1 - _incomplete_beta(b, a, 1 - x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log1p(-x)) / a
    value, c, d = 1.0, 1.0, 0.0
    for term in range(_TERMS):
        m = term // 2
        if term == 0:
            numerator = 1.0
        elif term % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _not_zero(1 + numerator * d)
        c = _not_zero(1 + numerator / c)
        value *= c * d
        if abs(1 - c * d) < 1e-15:
            break
    return front * (value - 1)


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
