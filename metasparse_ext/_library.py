"""Loading of the compiled library, with a reason in words when it cannot be had."""

import functools
import hashlib
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

_RECORD = Path(__file__).with_name("_build.json")
_SCHEMAS = Path(__file__).parents[1] / "csrc" / "library.cpp"  # there in a source tree only
_MEND = (
    "build it: python setup.py build_ext --inplace"
    if _SCHEMAS.is_file()
    else "reinstall it in this environment: "
    "pip install --no-build-isolation --force-reinstall --no-deps metasparse_ext"
)


def _release(version: str) -> str:
    """``"2.13.0+cpu"`` -> ``"2.13"``: the part of torch's version that its C++ ABI follows."""
    return ".".join(version.split("+")[0].split(".")[:2])


def _read_record() -> dict[str, Any] | None:
    try:
        return json.loads(_RECORD.read_text())
    except (OSError, ValueError):
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _load() -> str | None:
    """Loads ``metasparse_ext._C``; the reason in a sentence if it cannot be loaded."""
    record = _read_record()
    if record is None:
        return f"the compiled library of metasparse_ext is missing; {_MEND}"
    if record.get("left_out"):
        return f"metasparse_ext was installed without its compiled library; {_MEND}"
    if _release(record["torch"]) != _release(torch.__version__):
        return (
            f"the compiled library of metasparse_ext was built for torch {record['torch']}, "
            f"but torch {torch.__version__} is running; {_MEND}"
        )
    if _SCHEMAS.is_file() and _digest(_SCHEMAS) != record.get("schemas"):
        return f"the compiled library of metasparse_ext is older than its sources; {_MEND}"
    try:
        importlib.import_module("metasparse_ext._C")
    except ImportError as error:
        return f"the compiled library of metasparse_ext could not be loaded ({error}); {_MEND}"
    return None


#: Why the compiled library is not in use, or None when it is.
problem: str | None = _load()

if problem is not None:
    warnings.warn(problem, RuntimeWarning, stacklevel=2)


@functools.cache
def warn_reference() -> None:
    """Says once that ops run their slow reference."""
    warnings.warn(
        f"metasparse_ext runs its plain PyTorch reference ops, which are slow: {problem}",
        RuntimeWarning,
        stacklevel=3,
    )


def loaded() -> bool:
    """Whether the compiled ops can be called; the first False warns that references run instead."""
    if problem is None:
        return True
    warn_reference()
    return False


def build_record() -> dict[str, Any]:
    """What the library was built with: the build's record and the library's own account."""
    record = dict(_read_record() or {})
    if problem is None:
        lines = torch.ops.metasparse.build_info().splitlines()
        record.update(line.split("=", 1) for line in lines)
    return record
