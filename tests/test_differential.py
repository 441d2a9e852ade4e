"""Random calls of every op against its definition, the same ones each time and new ones.

``make stress`` runs many more of them.
"""

import random

import pytest
from support.differential import STRATEGIES
from support.machine import Workers
from support.search import search

from metasparse_ext import _library

pytestmark = pytest.mark.skipif(
    _library.problem is not None, reason="without the compiled library the ops are the definition"
)


@pytest.fixture(scope="module")
def workers():
    with Workers() as running:
        yield running


@pytest.mark.parametrize("name", STRATEGIES)
def test_draws_equal_the_definition(name, workers):
    fresh = random.SystemRandom().randrange(2**32)
    for seed in (0, fresh):
        failure = search(STRATEGIES[name], workers, seed, draws=100)
        assert failure is None, f"{name}, seed {seed}: {failure}"
