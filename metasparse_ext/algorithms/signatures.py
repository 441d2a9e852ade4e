"""The signatures of learners whose constructors hand options on."""

from __future__ import annotations

import inspect
from inspect import Parameter, Signature
from typing import Any


def spelled_out(kind: type) -> Signature:
    """The signature of a class's own constructor, whose ``**`` is replaced by what it stands for.

    A constructor that ends in ``**options`` hands them on to that of the class above. Its signature
    then has the keyword arguments of both, those from above first; one that both name has the
    annotation and the default of the class's own. Last come the options of its tasks, which every
    learner has.
    """
    _, *tasks, _ = (
        p for p in _evaluated(type(kind).__call__).parameters.values() if p.name != "args"
    )
    _, *parameters = _evaluated(vars(kind)["__init__"]).parameters.values()
    if not parameters or parameters[-1].kind is not Parameter.VAR_KEYWORD:
        return Signature([*parameters, *tasks])
    own = {p.name: p for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    above = inspect.signature(kind.__mro__[1]).parameters.values()
    handed_on = {p.name: p for p in above if p.kind is Parameter.KEYWORD_ONLY}
    positional = [p for p in parameters[:-1] if p.name not in own]
    common = {p.name: p for p in tasks}
    options = [p for name, p in (handed_on | own).items() if name not in common]
    return Signature([*positional, *options, *tasks])


def _evaluated(constructor: Any) -> Signature:
    """A signature whose annotations are types, or strings where they name what is not imported."""
    try:
        return inspect.signature(constructor, eval_str=True)
    except NameError:
        return inspect.signature(constructor)
