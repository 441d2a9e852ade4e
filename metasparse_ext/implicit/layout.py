"""Named tensors as slices of one flat buffer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from metasparse_ext import _library
from metasparse_ext._arguments import (
    refuse,
    require,
    require_count,
    require_like,
    require_shape,
    require_tensor,
    require_type,
    typed,
)
from metasparse_ext.ops._register import VmapInfo


@dataclass(frozen=True)
class Layout:
    """Order, names and shapes of the tensors that share one flat buffer of P numbers.

    The solvers of this package see the parameters of T task networks as one (T, P) buffer, so that
    an update, a dot product or a norm is one operation however many tensors the network has.

    Attributes:
        names: tensor names, in buffer order.
        shapes: their shapes, without any task axis.

    Example:
        >>> layout = Layout.of(nn.Linear(3, 2))
        >>> flat = layout.flatten(dict(nn.Linear(3, 2).named_parameters()))
        >>> flat.shape, {name: tuple(t.shape) for name, t in layout.unflatten(flat).items()}
        (torch.Size([8]), {'weight': (2, 3), 'bias': (2,)})
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    def __post_init__(self) -> None:
        for name in ("names", "shapes"):
            require_type("Layout", name, getattr(self, name), (tuple, list), "a tuple")
        for name in self.names:
            require_type("Layout", "names", name, str, "strings")
        for shape in self.shapes:
            require_type("Layout", "shapes", shape, (tuple, list), "tuples of sizes")
            for size in shape:
                require_count("Layout", "shapes", size)
        counts = len(self.names), len(self.shapes)
        require(counts[0] == counts[1], "Layout", "names and shapes", "as many", counts)

    @classmethod
    def of(cls, source: nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Layout:
        """Returns the layout of a module's parameters, or of named tensors without a task axis.

        Args:
            source: a module (its ``named_parameters()``), a mapping or an iterable of pairs.

        Raises:
            TypeError: something in ``source`` is not a named tensor.
            ValueError: ``source`` holds no tensor.
        """
        owner, expected = "Layout.of", "a module or named tensors"
        named: dict[str, Tensor]
        if isinstance(source, nn.Module):
            named = dict(source.named_parameters())
        else:
            if isinstance(source, Tensor):
                refuse(owner, "source", expected, typed(source), TypeError)
            try:
                named = dict(source)
            except (TypeError, ValueError):
                refuse(owner, "source", expected, typed(source), TypeError)
        for name, tensor in named.items():
            require_type(owner, "names in source", name, str, "strings")
            require_tensor(owner, f"source[{name!r}]", tensor)
        require(bool(named), owner, "source", "at least one named tensor", source)
        return cls(tuple(named), tuple(tensor.shape for tensor in named.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers of the buffer each tensor takes."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def numel(self) -> int:
        """P, the length of the buffer."""
        return sum(self.sizes)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the buffer."""
        slices, start = {}, 0
        for name, size in zip(self.names, self.sizes, strict=True):
            slices[name] = slice(start, start + size)
            start += size
        return slices

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Copies named tensors into one flat buffer; differentiable.

        Args:
            tensors: each of shape ``(*B, *shape)`` with one common batch shape B (usually (T,) or
                empty), or without B, which shares it between all tasks. Names this layout does
                not have are ignored.

        Returns:
            (*B, P).

        Raises:
            TypeError: something is not a dense tensor.
            ValueError: a name of this layout is missing, a tensor's shape does not end in the
                layout's shape, or two batch shapes cannot be broadcast.
        """
        owner = "Layout.flatten"
        require_type(owner, "tensors", tensors, Mapping, "named tensors")
        parts, batches = [], []
        for name, shape in zip(self.names, self.shapes, strict=True):
            require(name in tensors, owner, f"tensors[{name!r}]", "given", list(tensors))
            tensor = tensors[name]
            require_tensor(owner, f"tensors[{name!r}]", tensor)
            split = tensor.dim() - len(shape)
            if split < 0 or tensor.shape[split:] != shape:
                expected = f"of shape (*, {', '.join(map(str, shape))})"
                refuse(owner, f"tensors[{name!r}]", expected, str(tuple(tensor.shape)))
            batches.append(tensor.shape[:split])
            parts.append(tensor)
        try:
            batch = torch.broadcast_shapes(*batches)
        except RuntimeError:
            came = dict(zip(self.names, map(tuple, batches), strict=True))
            refuse(owner, "tensors", "of one common batch shape", str(came))
        parts = [
            part if own == batch else part.expand(*batch, *shape)
            for part, own, shape in zip(parts, batches, self.shapes, strict=True)
        ]
        if _library.loaded():
            return torch.ops.metasparse.flatten_tasks(parts, *self._packed_shapes)
        return torch.cat([part.flatten(len(batch)) for part in parts], dim=-1)

    def unflatten(self, flat: Tensor, *, zero: Tensor | None = None) -> dict[str, Tensor]:
        """Cuts a flat buffer (*B, P) into named views of shape ``(*B, *shape)``; differentiable.

        One op makes all views, and its backward is one copy of their gradients, side by side.

        Args:
            flat: (*B, P).
            zero: A zero (), of the dtype and on the device of the buffer. The gradient of a view
                that has none is copied from it, where a launch would make a zero each time.

        Raises:
            TypeError: something is not a dense tensor.
            ValueError: the buffer's last axis is not P long, or ``zero`` is no zero of its kind.
        """
        require_tensor("Layout.unflatten", "flat", flat)
        if zero is not None:
            require_tensor("Layout.unflatten", "zero", zero)
            require_like("Layout.unflatten", "zero", zero, "flat", flat)
            require_shape("Layout.unflatten", "zero", zero, ())
        if flat.dim() == 0 or flat.shape[-1] != self.numel:
            expected = f"of shape (*, {self.numel})"
            refuse("Layout.unflatten", "flat", expected, str(tuple(flat.shape)))
        if _library.loaded():
            parts = torch.ops.metasparse.unflatten_tasks(flat, *self._packed_shapes, zero)
        else:
            slices = flat.split(self.sizes, dim=-1)
            shapes = [flat.shape[:-1] + shape for shape in self.shapes]
            parts = [part.reshape(shape) for part, shape in zip(slices, shapes, strict=True)]
        return dict(zip(self.names, parts, strict=True))

    @cached_property
    def _packed_shapes(self) -> tuple[list[int], list[int]]:
        """The shapes one after the other, and the number of dimensions of each."""
        sizes = [size for shape in self.shapes for size in shape]
        return sizes, [len(shape) for shape in self.shapes]


# A mapped axis of vmap is one more axis of the batch.


def _unflatten_mapped(
    info: VmapInfo,
    in_dims: Sequence[Any],
    flat: Tensor,
    sizes: list[int],
    ranks: list[int],
    zero: object = None,
) -> tuple[list[Tensor], list[int | None]]:
    dim, *_ = in_dims
    if dim is not None:
        flat = flat.movedim(dim, 0)
    parts = torch.ops.metasparse.unflatten_tasks(flat, sizes, ranks, None)
    return parts, [None if dim is None else 0] * len(parts)


def _flatten_mapped(
    info: VmapInfo,
    in_dims: Sequence[Any],
    tensors: list[Tensor],
    sizes: list[int],
    ranks: list[int],
) -> tuple[Tensor, int]:
    parts = [
        part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
        for part, dim in zip(tensors, in_dims[0], strict=True)
    ]
    return torch.ops.metasparse.flatten_tasks(parts, sizes, ranks), 0


if _library.loaded():
    torch.library.register_vmap("metasparse::unflatten_tasks", _unflatten_mapped)
    torch.library.register_vmap("metasparse::flatten_tasks", _flatten_mapped)
