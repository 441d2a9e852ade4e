"""Tensors that lie in memory in every way that a caller's may."""

import ctypes
import math
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Fill = Callable[[Sequence[int]], Tensor]

_PAGE, _PROT_NONE = mmap.PAGESIZE, 0
_LIBC = ctypes.CDLL(None, use_errno=True)


def place(shape: Sequence[int], layout: str, fill: Fill) -> Tensor:
    """A tensor of ``shape`` in a layout of LAYOUTS, its values those of ``fill(some shape)``.

    What lies in memory between and around its elements is NaN, or must not be touched at all.
    """
    return LAYOUTS[layout](tuple(shape), fill)


def _contiguous(shape, fill):
    return fill(shape)


def _offset(shape, fill):
    """Starts some elements into its storage and ends before the end."""
    values = fill(shape)
    storage = values.new_full((values.numel() + 8,), torch.nan)
    return storage[3 : 3 + values.numel()].view(shape).copy_(values)


def _gaps(shape, fill):
    """Dense below the first axis, with a gap after each of its entries."""
    values = fill(shape)
    size = math.prod(shape[1:])
    storage = values.new_full((shape[0], size + 5), torch.nan)
    return storage[:, 2 : 2 + size].unflatten(1, shape[1:] or (1,)).view(shape).copy_(values)


def _sliced(shape, fill):
    """Every other element of a larger tensor, along each axis."""
    values = fill(shape)
    parent = values.new_full([2 * size + 1 for size in shape], torch.nan)
    return parent[tuple(slice(1, 2 * size, 2) for size in shape)].copy_(values)


def _cropped(shape, fill):
    """The middle of a larger tensor."""
    values = fill(shape)
    parent = values.new_full([size + 2 for size in shape], torch.nan)
    return parent[tuple(slice(1, size + 1) for size in shape)].copy_(values)


def _expanded(shape, fill):
    """The same along the second axis: a stride of zero."""
    axis = min(1, len(shape) - 1)
    return fill([1 if d == axis else size for d, size in enumerate(shape)]).expand(shape)


def _constant(shape, fill):
    return fill([1] * len(shape)).expand(shape)


def _channels_last(shape, fill):
    """The third axis runs fastest, as the channels of images stored channels last."""
    axis = min(2, len(shape) - 1)
    order = [*(d for d in range(len(shape)) if d != axis), axis]
    values = fill([shape[d] for d in order])
    return values.permute([order.index(d) for d in range(len(shape))])


def _transposed(shape, fill):
    """The first axis runs fastest."""
    return fill(shape[::-1]).permute(tuple(reversed(range(len(shape)))))


def _overlapping(shape, fill):
    """Steps shorter than what they step over: elements share memory."""
    strides = [max(1, math.prod(shape[d + 1 :]) // 2) for d in range(len(shape))]
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    return fill([extent]).as_strided(shape, strides)


def _negative(shape, fill):
    """Values that are negated when they are read."""
    return torch._neg_view(fill(shape))


def _before_guard(shape, fill):
    """Ends where reading any further is a segmentation fault."""
    return guarded(fill(shape), at_end=True)


def _after_guard(shape, fill):
    """Starts where reading what precedes it is a segmentation fault."""
    return guarded(fill(shape), at_end=False)


def guarded(values: Tensor, at_end: bool) -> Tensor:
    """A copy whose memory ends, or begins, where a page begins that nobody may touch."""
    pages = -(-values.nbytes // _PAGE)
    buffer = mmap.mmap(-1, (pages + 2) * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    for page in (0, pages + 1):
        if _LIBC.mprotect(ctypes.c_void_p(address + page * _PAGE), _PAGE, _PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
    start = (pages + 1) * _PAGE - values.nbytes if at_end else _PAGE
    inside = torch.frombuffer(buffer, dtype=values.dtype, count=values.numel(), offset=start)
    return inside.view(values.shape).copy_(values)


LAYOUTS: dict[str, Callable[[tuple[int, ...], Fill], Tensor]] = {
    "contiguous": _contiguous,
    "before guard": _before_guard,
    "after guard": _after_guard,
    "offset": _offset,
    "gaps": _gaps,
    "sliced": _sliced,
    "cropped": _cropped,
    "expanded": _expanded,
    "constant": _constant,
    "channels last": _channels_last,
    "transposed": _transposed,
    "overlapping": _overlapping,
    "negative": _negative,
}
