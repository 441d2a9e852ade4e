"""Calls of public functions and constructors with one argument that cannot be right."""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# What some argument may be by accident: by the name that a test shows.
VALUES: dict[str, Any] = {
    "none": None,
    "text": "text",
    "empty text": "",
    "fraction": 2.5,
    "negative": -1,
    "nan": math.nan,
    "infinity": math.inf,
    "huge": 10**30,
    "flag": True,
    "list": [1],
    "empty list": [],
    "mapping": {"a": 1},
    "object": object(),
    "class": int,
    "function": len,
    "bytes": b"bytes",
    "complex": 1j,
    "array": np.ones((2, 2)),
    "number tensor": torch.tensor(1.5),
    "complex tensor": torch.ones(2, 2, dtype=torch.complex64),
    "integer tensor": torch.ones(2, 2, dtype=torch.int64),
    "half tensor": torch.ones(2, 2, dtype=torch.float16),
    "empty tensor": torch.empty(0),
    "sparse tensor": torch.eye(2).to_sparse(),
    "meta tensor": torch.empty(2, 2, device="meta"),
}

# What is wrong with a tensor that has the right shape, or almost.
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "its complex": lambda t: t.to(torch.complex64),
    "its integers": lambda t: t.to(torch.int32),
    "its half": lambda t: t.to(torch.float16),
    "its double": lambda t: t.to(torch.float64),
    "its sparse": lambda t: t.to_sparse(),
    "its meta": lambda t: t.to("meta"),
    "its stack": lambda t: t.expand(2, 2, 2, *t.shape),
}

REFUSALS = (TypeError, ValueError, NotImplementedError, FloatingPointError)


# What an owner calls an argument that is handed on to it: (owner, argument) -> name.
HANDED_ON = {
    **{(layer, "x"): "input" for layer in ("MaskedConv2d", "Linear")},
    **{(op, "input"): "x" for op in ("masked_conv2d", "masked_conv")},
}


class Call(NamedTuple):
    """A call that is right, of which one argument at a time is replaced.

    Attributes:
        owner: How messages name the function or class; or several, if it hands arguments on.
        function: Takes keywords.
        arguments: Makes them anew; each is named in the function's signature.
        fit: Names of VALUES or CHANGES that are right for an argument, by the argument.
    """

    owner: str | tuple[str, ...]
    function: Callable[..., Any]
    arguments: Callable[[], Mapping[str, Any]]
    fit: Mapping[str, tuple[str, ...]] = {}


def wrong_calls(calls: Mapping[str, Call]) -> Iterator[tuple[str, str]]:
    """(call, argument) for every parameter of every call."""
    for name, call in calls.items():
        for argument in inspect.signature(call.function).parameters:
            yield name, argument


def wrong_values(call: Call, argument: str) -> Iterator[str]:
    """The names of the values that are wrong for an argument."""
    changes = CHANGES if isinstance(call.arguments().get(argument), Tensor) else {}
    for value in (*VALUES, *changes):
        if value not in call.fit.get(argument, ()):
            yield value


def complaint(call: Call, argument: str, value: str) -> str | None:
    """What is wrong with the refusal of a wrong value: nothing if it names owner and argument."""
    right = call.arguments()
    wrong = VALUES[value] if value in VALUES else CHANGES[value](right[argument])
    owners = call.owner if isinstance(call.owner, tuple) else (call.owner,)
    said = {owner: HANDED_ON.get((owner, argument), argument) for owner in owners}
    patterns = (rf"{re.escape(o)}: expected .*\b{name}\b.*, got \S" for o, name in said.items())
    pattern = "|".join(patterns)
    try:
        call.function(**{**right, argument: wrong})
    except REFUSALS as error:
        fits = re.match(pattern, str(error), re.DOTALL)
        return None if fits else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it was taken"
