"""The environment variables of the package: which there are, and that none is mistyped."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from metasparse_ext import _library

_PREFIX = "METASPARSE_"
_FOLDERS = ("METASPARSE_CACHE", "METASPARSE_DATA")
_OF_THE_BUILD = ("METASPARSE_FORCE_CUDA",)
_CHOICES = ("METASPARSE_CONV_BACKEND", "METASPARSE_CPU_ISA", "METASPARSE_CUDA_BACKEND")


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
    """Has the library read its variables, which it does when it first needs them."""
    if _library.problem is not None:
        return
    readers = {
        "METASPARSE_CPU_ISA": torch.ops.metasparse.build_info,
        "METASPARSE_CONV_BACKEND": torch.ops.metasparse.conv_backend,
    }
    for name, reader in readers.items():
        try:
            reader()
        except (RuntimeError, ValueError) as error:
            raise EnvironmentVariableError(f"{name}: {str(error).splitlines()[0]}") from error


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
