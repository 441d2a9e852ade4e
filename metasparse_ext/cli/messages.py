"""What a user is told: plain lines, and errors as one line on stderr and an exit code."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console

from metasparse_ext._capture import CaptureError
from metasparse_ext.cli import environment
from metasparse_ext.data import DataError
from metasparse_ext.training import CheckpointError, RunInUseError, TrainingError

T = TypeVar("T")

INTERRUPTED = 130

# So many names are listed in a message.
_LISTED = 20


class UserError(click.ClickException):
    """Something asked for that cannot be done: one line on stderr, exit code 2."""

    exit_code = 2


class OneLineErrors(click.Group):
    """A group that reports every foreseen error as one line on stderr."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        extra["standalone_mode"] = False
        try:
            environment.check()
            code = super().main(args, *rest, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            code = 2
        except click.Abort:
            code = INTERRUPTED
        except (click.ClickException, DataError, CheckpointError, RunInUseError) as error:
            code = _report(error, 2)
        except environment.EnvironmentVariableError as error:
            code = _report(error, 2)
        except OSError as error:
            code = _report(UserError(_of_system(error)), 2)
        except MemoryError as error:
            code = _report(UserError(f"there is not enough memory: {error}"), 2)
        except (TrainingError, FloatingPointError, CaptureError) as error:
            code = _report(error, 1)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            code = _report(UserError(str(error).splitlines()[0]), 2)
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


def checked(make: Callable[[], T]) -> T:
    """What ``make`` returns; a value it refuses is the user's error, not a crash."""
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _of_system(error: OSError) -> str:
    """A file and what the system says of it."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _report(error: Exception, code: int) -> int:
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    click.echo(f"metasparse: {' '.join(message.split())}", err=True)
    return code
