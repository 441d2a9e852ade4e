"""The benchmark of the choice of an algorithm: what it measures and what it advises."""

import pytest

from benchmarks import tune
from benchmarks.ops import Conv
from metasparse_ext import _library


def test_the_safest_algorithm_has_the_least_worst_case():
    machines = [{"a": 1.0, "b": 2.0, "c": 1.5}, {"a": 3.0, "b": 1.0, "c": 1.2}]
    assert tune.safest(machines) == "c"
    assert tune.safest(machines[:1]) == "a"
    assert tune.loss(machines[0], "b") == 2.0


@pytest.mark.skipif(_library.problem is not None, reason="no compiled library")
@pytest.mark.parametrize("op", ["forward", "input gradient", "weight gradient"])
def test_a_choice_that_loses_is_named(op):
    row = tune.measure(Conv(op, 2, 2, 3, 4, 6, 1, 0.5), budget=0.001)
    assert row.more["chosen"] in row.stock
    found = row.to_json()
    times = {"library": 4.0, "direct": 1.0}
    found["stock"] = {name: {"median": each} for name, each in times.items()}
    found["more"] = {"chosen": "library"}
    _, words = tune.report([found], [])
    assert words == ["library instead of direct: 1 calls, up to 4.00 times slower"]
