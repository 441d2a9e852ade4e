"""Constructors that hand options on show all of them, to people and to the command line."""

import inspect

import pytest
from support.plain_tasks import network

from metasparse_ext.algorithms import BMP, LEARNERS, MAML, MMSUP, MetaTicket, MultiMAML
from metasparse_ext.algorithms.maml import MAMLOptions

# Those of its tasks, which every learner has, last.
COMMON = ["loss", "metric", "task_chunk"]


def options(kind):
    """A learner's own."""
    parameters = inspect.signature(kind).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert list(found)[-3:] == COMMON
    return {name: default for name, default in found.items() if name not in COMMON}


def test_the_options_of_maml_are_those_that_it_takes():
    assert set(MAMLOptions.__annotations__) == set(options(MAML))


@pytest.mark.parametrize("kind", [BMP, MMSUP, MultiMAML, MetaTicket])
def test_learners_built_on_maml_have_its_options(kind):
    above, found = options(MAML), options(kind)
    assert list(found)[: len(above)] == list(above)
    assert found.items() >= above.items()
    assert len(found) > len(above)


@pytest.mark.parametrize("name", LEARNERS)
def test_no_learner_hides_options(name):
    parameters = inspect.signature(LEARNERS[name]).parameters.values()
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["model"]
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)


def test_a_default_of_its_own_is_shown():
    class Slow(BMP):
        def __init__(self, model, extra=1, *, inner_lr=0.5, **bmp):
            super().__init__(model, inner_lr=inner_lr, **bmp)

    class Slower(Slow):
        pass

    assert options(Slow) == {**options(BMP), "inner_lr": 0.5}
    assert list(inspect.signature(Slow).parameters)[:2] == ["model", "extra"]
    assert inspect.signature(Slower) == inspect.signature(Slow)
    assert Slower(network(), unit="module").inner_lr == 0.5


def test_an_option_that_no_learner_above_has_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'alpha'"):
        BMP(network(), alpha=1)
