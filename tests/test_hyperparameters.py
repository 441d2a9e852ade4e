"""What every learner says of an option that is not what its annotation asks for."""

import inspect
import math
from typing import get_args

import pytest
from support.plain_tasks import network

from metasparse_ext.algorithms import CAVIA, LEARNERS

WRONG = {
    float: [(math.nan, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)],
    int: [(-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)],
    bool: [("no", TypeError), (1, TypeError), (None, TypeError)],
}


def wrong_options():
    """Learner, option, a wrong value and the error it gets, for all numbers and switches."""
    for name, learner in LEARNERS.items():
        for option, parameter in inspect.signature(learner).parameters.items():
            kinds = get_args(parameter.annotation) or (parameter.annotation,)
            for kind in set(kinds) & set(WRONG):
                optional = type(None) in kinds
                missing = [] if optional or kind is bool else [(None, TypeError)]
                for value, error in [*WRONG[kind], *missing]:
                    yield pytest.param(learner, option, value, error, id=f"{name}-{option}-{value}")


@pytest.mark.parametrize(("learner", "option", "value", "error"), list(wrong_options()))
def test_a_wrong_option_is_named(learner, option, value, error):
    message = rf"^{learner.__name__}: expected {option} to be .*, got .*{value}"
    fitting = {"block": 1} if learner is CAVIA else {}  # the network has two blocks
    with pytest.raises(error, match=message):
        learner(network(), **{**fitting, option: value})


def test_every_learner_and_option_is_asked():
    """The annotations are types, so the list above misses none."""
    asked = {(case.values[0], case.values[1]) for case in wrong_options()}
    assert {learner for learner, _ in asked} == set(LEARNERS.values())
    assert (LEARNERS["metadock"], "lambda2") in asked
    assert (LEARNERS["maml"], "first_order") in asked


@pytest.mark.parametrize("rates", [[0.1, math.inf], [0.1, "1"], "11"])
def test_rates_of_several_distributions_are_numbers(rates):
    with pytest.raises((TypeError, ValueError), match="MultiMAML: expected inner_lr to be"):
        LEARNERS["multi-maml"](network(), inner_lr=rates, distributions=2)
