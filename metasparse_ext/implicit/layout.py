"""Named tensors as slices of one flat buffer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from metasparse_ext import _library


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

    @classmethod
    def of(cls, source: nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Layout:
        """Returns the layout of a module's parameters, or of named tensors without a task axis.

        Args:
            source: a module (its ``named_parameters()``), a mapping or an iterable of pairs.

        Raises:
            TypeError: something in ``source`` is not a named tensor.
            ValueError: ``source`` holds no tensor.
        """
        if isinstance(source, nn.Module):
            named = dict(source.named_parameters())
        else:
            try:
                named = dict(source)
            except (TypeError, ValueError):
                raise TypeError(
                    f"Layout.of: expected a module or named tensors, got {type(source).__name__}"
                ) from None
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"Layout.of: expected a tensor for {name!r}, got {type(tensor).__name__}"
                )
        if not named:
            raise ValueError("Layout.of: expected at least one tensor, got none")
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
            KeyError: a name of this layout is missing.
            ValueError: a tensor's shape does not end in the layout's shape, or two batch shapes
                cannot be broadcast.
        """
        parts, batches = [], []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in tensors:
                raise KeyError(f"Layout.flatten: {name!r} is missing")
            tensor = tensors[name]
            split = tensor.dim() - len(shape)
            if split < 0 or tensor.shape[split:] != shape:
                raise ValueError(
                    f"Layout.flatten: expected {name!r} of shape (*, {', '.join(map(str, shape))})"
                    f", got {tuple(tensor.shape)}"
                )
            batches.append(tensor.shape[:split])
            parts.append(tensor)
        try:
            batch = torch.broadcast_shapes(*batches)
        except RuntimeError:
            raise ValueError(
                "Layout.flatten: expected one common batch shape, got "
                f"{dict(zip(self.names, map(tuple, batches), strict=True))}"
            ) from None
        parts = [
            part if own == batch else part.expand(*batch, *shape)
            for part, own, shape in zip(parts, batches, self.shapes, strict=True)
        ]
        if _library.loaded():
            return torch.ops.metasparse.flatten_tasks(parts, *self._packed_shapes)
        return torch.cat([part.flatten(len(batch)) for part in parts], dim=-1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Cuts a flat buffer (*B, P) into named views of shape ``(*B, *shape)``; differentiable.

        One op makes all views, and its backward is one copy of their gradients, side by side.

        Raises:
            ValueError: the buffer's last axis is not P long.
        """
        if flat.dim() == 0 or flat.shape[-1] != self.numel:
            raise ValueError(
                f"Layout.unflatten: expected shape (*, {self.numel}), got {tuple(flat.shape)}"
            )
        if _library.loaded():
            parts = torch.ops.metasparse.unflatten_tasks(flat, *self._packed_shapes)
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
