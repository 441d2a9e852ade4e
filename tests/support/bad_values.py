"""Calls of public functions and constructors with one argument that cannot be right."""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

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

REFUSALS = (TypeError, ValueError, NotImplementedError, FloatingPointError)


class Call(NamedTuple):
    """A call that is right, of which one argument at a time is replaced.

    Attributes:
        owner: How messages name the function or class.
        function: Takes keywords.
        arguments: Makes them anew; each is named in the function's signature.
        fit: Names of VALUES that are right for an argument, by the argument.
    """

    owner: str
    function: Callable[..., Any]
    arguments: Callable[[], Mapping[str, Any]]
    fit: Mapping[str, tuple[str, ...]] = {}


def wrong_calls(calls: Mapping[str, Call]) -> Iterator[tuple[str, str, str]]:
    """(call, argument, name of the wrong value) for every parameter of every call."""
    for name, call in calls.items():
        for argument in inspect.signature(call.function).parameters:
            for value in VALUES:
                if value not in call.fit.get(argument, ()):
                    yield name, argument, value


def complaint(call: Call, argument: str, value: str) -> str | None:
    """What is wrong with the refusal of a wrong value: nothing if it names owner and argument."""
    arguments = {**call.arguments(), argument: VALUES[value]}
    try:
        call.function(**arguments)
    except REFUSALS as error:
        text = str(error)
        named = text.startswith(f"{call.owner}: ") and re.search(rf"\b{argument}\b", text)
        return None if named and "got" in text else f"{type(error).__name__}: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it was taken"
