"""Reading the pickles that data sets are passed on in, without running what they say.

A pickle is a program: the usual reader calls any function that it names. This one knows NumPy
arrays, numbers, texts, bytes, lists, tuples, sets and dicts, and refuses the file at the first name
of anything else.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metasparse_ext.data.errors import DataError

_DAMAGED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, OSError, OverflowError, MemoryError, struct.error),
    RecursionError,
)
_PLAIN = "biufSU"


class _DType:
    """A type of plain numbers or texts: no objects, no fields."""

    __slots__ = ("plain",)

    def __init__(self, kind: Any, *_: Any) -> None:
        name = kind.decode("ascii") if isinstance(kind, bytes) else kind
        self.plain: np.dtype[Any] = np.dtype(name)
        if self.plain.kind not in _PLAIN or self.plain.subdtype is not None:
            raise pickle.UnpicklingError(f"expected an array of numbers, got one of {kind!r:.60}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("expected an array of numbers, got one of records")
        order: Any = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if self.plain.kind not in "SU" or self.plain.itemsize:
            self.plain = self.plain.newbyteorder(order)
        else:  # The length of texts comes here alone.
            length = state[5] // np.dtype(f"{self.plain.kind}1").itemsize
            self.plain = np.dtype(f"{order}{self.plain.kind}{length}")


class _Array:
    """An array whose content comes after it."""

    __slots__ = ("plain",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        self.plain = _filled(data, dtype, shape, "F" if by_columns else "C")


def _filled(data: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    raw: Any = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, (bytes, bytearray, memoryview, pickle.PickleBuffer)):
        raise pickle.UnpicklingError(f"expected the bytes of an array, got {type(raw).__name__}")
    return np.frombuffer(raw, dtype.plain).reshape(shape, order=order)  # type: ignore[arg-type, call-overload]


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: _DType, shape: Any, order: Any) -> np.ndarray:
    return _filled(data, dtype, shape, "F" if order in ("F", b"F") else "C")


def _scalar(dtype: _DType, data: Any) -> Any:
    return _filled(data, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes in protocols 0 to 2."""
    return text.encode("latin1")


class _Named:
    """A function that a pickle may call, and nothing else: a pickle can set no attribute of it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("expected plain data, got the state of a function")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Named(lambda *_: _Array()),
    ("numpy", "dtype"): _Named(_DType),
    ("_codecs", "encode"): _Named(_encode),
}
for _core in ("builtins", "__builtin__"):
    _KNOWN[_core, "bytes"] = _Named(lambda: b"")
    _KNOWN[_core, "set"] = _Named(set)
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Named(_reconstruct)
    _KNOWN[f"{_core}.multiarray", "scalar"] = _Named(_scalar)
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _Named(_from_buffer)


def _plain(value: Any) -> Any:
    """The value with the arrays that were filled in place of what stood for them."""
    if isinstance(value, _Array):
        return value.plain
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only arrays, numbers, texts, bytes, lists, tuples, "
                "sets and dicts are read, as anything else could run a program"
            ) from None


def read_pickle(path: Path, owner: str, file: BinaryIO | None = None) -> Any:
    """What a pickle holds, of Python 2 or 3; texts of Python 2 are bytes.

    Args:
        path: the file.
        owner: the data set, for messages.
        file: what to read instead, such as a part of the archive ``path``.

    Raises:
        DataError: the file is damaged, or asks for anything but plain data.
    """
    if not path.is_file():
        raise DataError(f"{owner}: {path} is not a regular file")
    try:
        with open(path, "rb") if file is None else nullcontext(file) as opened:
            return _plain(_Unpickler(opened, encoding="bytes").load())
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{owner}: cannot read {path}: {reason}") from error


def read_dict(path: Path, owner: str, *keys: str, file: BinaryIO | None = None) -> list[Any]:
    """The values of a pickled dict under these keys, as texts or as bytes.

    Raises:
        DataError: it is no dict, or has not all of the keys.
    """
    held = read_pickle(path, owner, file)
    if not isinstance(held, dict):
        raise DataError(f"{owner}: {path}: expected a dict, got {type(held).__name__}")
    named = {text(key): value for key, value in held.items()}
    if missing := [key for key in keys if key not in named]:
        raise DataError(
            f"{owner}: {path}: expected the keys {', '.join(keys)}, got no {', '.join(missing)}"
        )
    return [named[key] for key in keys]


def text(value: Any) -> str:
    """A text of Python 2 or 3."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def image_array(value: Any, path: Path, owner: str) -> np.ndarray:
    """Images (n, H, W), (n, H, W, 1) or (n, H, W, 3) uint8 that a pickle held.

    Raises:
        DataError: something else.
    """
    fits = (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and (value.ndim == 3 or (value.ndim == 4 and value.shape[3] in (1, 3)))
    )
    if not fits:
        got = (
            f"{value.dtype} {value.shape}"
            if isinstance(value, np.ndarray)
            else type(value).__name__
        )
        raise DataError(
            f"{owner}: {path}: expected images (n, H, W) or (n, H, W, 3) of type uint8, got {got}"
        )
    return value if value.ndim == 3 or value.shape[3] == 3 else value[..., 0]
