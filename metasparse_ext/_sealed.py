"""Files of tensors and text, as safetensors, with a checksum over every byte of them.

The checksum is the SHA-256 of the file, computed with zeros in its own place. Reading a file runs
no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

# What reading a file that is damaged, or none of these, raises.
ERRORS = (
    *(ValueError, TypeError, KeyError, IndexError, RecursionError),
    safetensors.SafetensorError,
)

_DIGEST = "sha256"
_NO_DIGEST = "0" * 64
_HEADER_LENGTH = 8  # bytes, at the beginning of a safetensors file


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file of contiguous tensors that share no memory, and of text by name."""
    data = safetensors.torch.save(dict(tensors), {**metadata, _DIGEST: _NO_DIGEST})
    return _with_digest(data, _NO_DIGEST, hashlib.sha256(data).hexdigest())


def from_bytes(data: bytes, form: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors and the text that :func:`to_bytes` wrote.

    Args:
        data: The file.
        form: What its text must have as ``format``.

    Raises:
        ValueError, TypeError, KeyError, IndexError, RecursionError, SafetensorError: for anything
            else, those of ``ERRORS``.
    """
    metadata = _metadata(data)
    digest = metadata.get(_DIGEST)
    if not isinstance(digest, str) or len(digest) != len(_NO_DIGEST):
        raise ValueError("it has no checksum")
    if hashlib.sha256(_with_digest(data, digest, _NO_DIGEST)).hexdigest() != digest:
        raise ValueError("its checksum is not that of its content")
    if metadata.get("format") != form:
        raise ValueError(f"expected format {form!r}, got {metadata.get('format')!r}")
    return safetensors.torch.load(data), metadata


def _metadata(data: bytes) -> Mapping[str, Any]:
    length = int.from_bytes(data[:_HEADER_LENGTH], "little")
    if len(data) < _HEADER_LENGTH or length > len(data) - _HEADER_LENGTH:
        raise ValueError("it ends within its header")
    header = json.loads(data[_HEADER_LENGTH : _HEADER_LENGTH + length])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("it has no metadata")
    return metadata


def _with_digest(data: bytes, old: str, new: str) -> bytes:
    """The file with another checksum in the place of the old one."""
    old_entry, new_entry = (f'"{_DIGEST}":"{digest}"'.encode() for digest in (old, new))
    if data.count(old_entry) != 1:
        raise ValueError("the place of its checksum is not clear")
    return data.replace(old_entry, new_entry)
