"""The environment variables of the package: which there are, and that none is mistyped."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from metasparse_ext import _library
from metasparse_ext.ops.backends import VARIABLES, get_backend

_PREFIX = "METASPARSE_"
_FOLDERS = ("METASPARSE_CACHE", "METASPARSE_DATA")
_OF_THE_BUILD = ("METASPARSE_FORCE_CUDA",)
_CHOICES = ("METASPARSE_CPU_ISA", *VARIABLES.values())


class EnvironmentVariableError(Exception):
    """An environment variable that is unknown, or whose value cannot be used."""


def check(variables: Mapping[str, str] = os.environ) -> None:
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
            reason = str(error).splitlines()[0].removeprefix(f"{name}: ")
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
