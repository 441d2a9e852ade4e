"""What a user is told: plain lines, and errors as one line on stderr and an exit code.

The environment variables of the package are looked at before any command.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import torch
from rich.console import Console

from metasparse_ext import _library
from metasparse_ext._arguments import require_path, require_type
from metasparse_ext._capture import CaptureError
from metasparse_ext._entries import any_imported, blame, from_imported
from metasparse_ext.data import DataError
from metasparse_ext.ops.backends import VARIABLES, get_backend
from metasparse_ext.training import CheckpointError, Run, RunInUseError, TrainingError

T = TypeVar("T")

INTERRUPTED = 130

# So many names are listed in a message.
_LISTED = 20

_PREFIX = "METASPARSE_"
_FOLDERS = ("METASPARSE_CACHE", "METASPARSE_DATA")
_OF_THE_BUILD = ("METASPARSE_FORCE_CUDA", "METASPARSE_NO_BUILD")
_CHOICES = ("METASPARSE_CPU_ISA", *VARIABLES.values())


class UserError(click.ClickException):
    """Something asked for that cannot be done: one line on stderr, exit code 2."""

    exit_code = 2


class EnvironmentVariableError(Exception):
    """An environment variable that is unknown, or whose value cannot be used."""


# Errors whose text is for the user as it is.
_TOLD = (
    *(DataError, CheckpointError, RunInUseError, EnvironmentVariableError),
    *(TrainingError, FloatingPointError, CaptureError),
)


class OneLineErrors(click.Group):
    """A group that reports every foreseen error as one line on stderr."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        extra["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            # What the encoding of a terminal or file lacks is no reason to lose what was computed.
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
        try:
            check_environment()
            code = super().main(args, *rest, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            code = 2
        except click.Abort:
            code = INTERRUPTED
        except Exception as error:
            said = foreseen(error)
            if said is None:
                raise
            text, code = said
            click.echo(f"metasparse: {text}", err=True)
        sys.exit(code)


def console(**options: Any) -> Console:
    """Where results go; brackets and colons in paths and names are no markup to it."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def say(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(text, soft_wrap=True)


def known(what: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of ``names``; else an error that suggests the nearest."""
    names = list(names)
    # A settings file may hold any type.
    checked(lambda: require_type(what, "name", name, str, "text"))
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    listed = within(name, names) or names
    if near:
        hint = f"did you mean {near[0]}?"
    elif len(listed) <= _LISTED:
        hint = f"there are {', '.join(listed)}"
    else:
        hint = f"`metasparse {what}s` lists them"
    raise UserError(f"unknown {what} {name!r}: {hint}")


def within(name: str, names: Iterable[str]) -> list[str]:
    """Those of the names that begin with ``name`` and a slash."""
    return [each for each in names if each.startswith(f"{name}/")]


def folder(context: click.Context, option: click.Parameter, given: Any) -> Any:
    """For click, a callback: the run, or runs, in a folder by a path that can be one."""
    if isinstance(given, tuple):
        return tuple(folder(context, option, each) for each in given)
    try:
        return None if given is None else Run(given)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from error


def file_path(text: str) -> Path:
    """For click, a type: a path that can be one; empty text would be the present folder."""
    try:
        return require_path("command line", "it", text)
    except ValueError as error:
        raise click.BadParameter(str(error).partition(": ")[2]) from error


def checked(make: Callable[[], T]) -> T:
    """What ``make`` returns; a value it refuses is the user's error, not a crash."""
    try:
        return make()
    except (ValueError, TypeError) as error:
        # Of code of the user's own, the line is what helps.
        raise UserError(blame(error) if from_imported(error) else str(error)) from error


def _of_system(error: OSError) -> str:
    """A file and what the system says of it."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _of_allocator(text: str) -> str:
    """What torch says of memory; that its CPU allocator says it, and where, is not for users."""
    asked = re.search(r"you tried to allocate (\d+) bytes", text)
    if asked is None:
        return text
    return f"there is not enough memory: {int(asked[1]) / 2**30:.1f} GiB were asked for at once"


def foreseen(error: Exception) -> tuple[str, int] | None:
    """What a user is told of an error, in a line, and the exit code; None of a fault of ours."""
    code = 1 if isinstance(error, (TrainingError, FloatingPointError, CaptureError)) else 2
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, _TOLD):
        text = str(error)
    elif isinstance(error, OSError):
        text = _of_system(error)
    elif isinstance(error, MemoryError):
        text = f"there is not enough memory: {error}"
    elif isinstance(error, RuntimeError) and "memory" in str(error):
        text = _of_allocator(str(error).splitlines()[0])
    elif any_imported():  # code of the user's own, for all we know
        text = blame(error)
    else:
        return None
    return " ".join(in_flags(text).split()), code


def in_flags(text: str) -> str:
    """A message whose advice is an argument of the library, with the flag in its place."""
    return re.sub(r"\bimage_size (?=brings|makes)", "--image-size ", text)


def check_environment(variables: Mapping[str, str] = os.environ) -> None:
    """Refuses variables that begin as ours do and are none, and folders that cannot be.

    Raises:
        EnvironmentVariableError: naming the variable.
    """
    known = (*_FOLDERS, *_CHOICES, *_OF_THE_BUILD)
    for name in variables:
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise EnvironmentVariableError(f"unknown environment variable {name}: {hint}")
    for name in _FOLDERS:
        _check_folder(name, variables.get(name))
    _check_choices()


def _check_choices() -> None:
    """Has the variables read that are else read when they are first needed."""
    readers: dict[str, Callable[[], object]] = {
        VARIABLES["cuda"]: lambda: get_backend("cuda"),
    }
    if _library.problem is None:
        readers |= {
            "METASPARSE_CPU_ISA": torch.ops.metasparse.build_info,
            VARIABLES["cpu"]: torch.ops.metasparse.conv_backend,
        }
    for name, reader in readers.items():
        try:
            reader()
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0].removeprefix(name).lstrip(": ")
            raise EnvironmentVariableError(f"{name}: {reason}") from error


def _check_folder(name: str, value: str | None) -> None:
    if not value:
        return
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise EnvironmentVariableError(f"{name}: {value}: there is no home folder") from error
    if path.exists() and not path.is_dir():
        raise EnvironmentVariableError(f"{name}: expected a folder, got the file {value}")
    if name == "METASPARSE_DATA" and not path.exists():
        raise EnvironmentVariableError(f"{name}: there is no folder {value}")
