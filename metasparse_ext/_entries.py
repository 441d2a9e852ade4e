"""Parts of a run by name: one of a table's, or ``package.module:attribute``, which is imported.

Models, data, learners, optimizers, losses and metrics are all named so. An object that was given
instead has a label: the name by which it can be imported, if there is one, else ``<module.Name>``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any

from metasparse_ext._arguments import require, require_text

_IMPORTABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

# The modules that were imported by name: code that is not ours, and whose errors are not ours.
_imported: set[str] = set()


def is_import(name: str) -> bool:
    """Whether a name has the form ``package.module:attribute``."""
    return _IMPORTABLE.fullmatch(name) is not None


def is_label(name: str) -> bool:
    """Whether a name is the label of an object that cannot be imported."""
    return name.startswith("<")


def find(owner: str, argument: str, name: str, known: Mapping[str, Any], kind: str) -> Any:
    """Looks a name up in a table, or imports ``package.module:attribute``.

    Args:
        owner, argument: Who asks and for what, for messages.
        name: The name.
        known: The table.
        kind: What the attribute is, such as ``Class``, for messages.

    Raises:
        ValueError: If there is no such entry, or its module cannot be imported.
    """
    if name in known:
        return known[name]
    wanted = f"package.module:{kind}"
    require(is_import(name), owner, argument, " or ".join((wanted, _one_of(known))), name)
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
        _imported.add(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{owner}: expected {argument} to be {wanted}, got {name!r}: {error}"
        ) from error
    except Exception as error:  # whatever the module does when it is imported
        text = f"{owner}: expected {argument} to be {wanted}, got {name!r}: {blame(error)}"
        raise ValueError(text) from error
    return found


def check_name(owner: str, argument: str, name: object, known: Mapping[str, Any]) -> None:
    """Refuses what is neither in a table, nor of the form of an import, nor a label.

    Raises:
        TypeError, ValueError: Naming owner and argument.
    """
    require_text(owner, argument, name, empty=False)
    text = str(name)
    fits = text in known or is_import(text) or is_label(text)
    require(fits, owner, argument, f"{_one_of(known)} or package.module:attribute", name)


def label(value: Any, known: Mapping[str, Any] | None = None) -> str:
    """What to call an object: its name in a table, as an import, or ``<module.Name>``."""
    for name, entry in (known or {}).items():
        if entry is value:
            return name
    is_named = isinstance(value, type) or inspect.isroutine(value)
    named: Any = value if is_named else type(value)
    module, name = named.__module__, named.__qualname__
    if is_named and module != "__main__":
        found: Any = sys.modules.get(module)
        for attribute in name.split("."):
            found = getattr(found, attribute, None)
        if found is value:
            return f"{module}:{name}"
    return f"<{module}.{name}>"


def short_name(value: Any, known: Mapping[str, Any], otherwise: str) -> str:
    """A word for a function: its name in a table, or that of its definition or class."""
    while isinstance(value, functools.partial):
        value = value.func
    name = label(value, known).strip("<>").rpartition(":")[2].rpartition(".")[2]
    return name if name.isidentifier() else otherwise


def called(owner: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """Calls a function with those of the arguments offered that its parameters name.

    Raises:
        ValueError: If it needs another argument.
    """
    return function(**asked(owner, function, offered))


def asked(owner: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments offered that a function's parameters name.

    Raises:
        ValueError: If it needs an argument that is not offered.
    """
    try:
        parameters = tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = ()
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in several]
    missing = [each for each in needed if each not in offered]
    wanted = f"those of {', '.join(offered)} that it wants"
    require(not missing, owner, f"the parameters of {label(function)}", wanted, missing)
    return {p.name: offered[p.name] for p in parameters if p.name in offered}


def blame(error: BaseException) -> str:
    """An error in a line, with the place in a module imported by name that it came from."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    places = _places(error)
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return said + place


def from_imported(error: BaseException) -> bool:
    """Whether an error came through a module that was imported by name."""
    return bool(_places(error))


def _places(error: BaseException) -> list[traceback.FrameSummary]:
    files = {getattr(sys.modules.get(name), "__file__", None) for name in _imported}
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if frame.filename in files]


def any_imported() -> bool:
    """Whether some code was imported by name in this process."""
    return bool(_imported)


def _one_of(known: Mapping[str, Any]) -> str:
    return f"one of {', '.join(known)}" if known else "no name alone"
