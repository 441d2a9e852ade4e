"""Meta-batches on the device that trains on them, each copied while the one before is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from metasparse_ext._arguments import require_type
from metasparse_ext.data.batch import TaskBatch


def on_device(batches: Iterable[TaskBatch], device: torch.device | str) -> Iterator[TaskBatch]:
    """Moves meta-batches to a device.

    On a GPU each goes through page-locked memory on a stream of its own, one batch ahead of what
    was asked for, so that the copy (and the drawing of the episode) overlaps the meta-step before.
    Elsewhere nothing is drawn ahead. Which batches come, and their order, is the same.

    Args:
        batches: Meta-batches in host memory.
        device: Where they are wanted.
    """
    require_type("on_device", "batches", batches, Iterable, "batches to iterate over")
    expected = "a torch device"
    require_type("on_device", "device", device, (torch.device, str), expected)
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"on_device: expected device to be {expected}, got {device!r}") from error
    if device.type != "cuda":
        return (batch.to(device) for batch in batches)
    return _overlapped(batches, device)


def _overlapped(batches: Iterable[TaskBatch], device: torch.device) -> Iterator[TaskBatch]:
    copies = torch.cuda.Stream(device)
    ahead: tuple[TaskBatch, torch.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            sent = batch.pin_memory().to(device, non_blocking=True)
            arrival = copies.record_event()
        if ahead is not None:
            yield _received(*ahead)
            _release(copies, device)
        ahead = sent, arrival
    if ahead is not None:
        yield _received(*ahead)


def _received(batch: TaskBatch, arrival: torch.Event) -> TaskBatch:
    """The batch, for the stream that asks for it, which waits for the copy."""
    torch.cuda.current_stream(batch.query.labels.device).wait_event(arrival)
    return batch


def _release(copies: torch.cuda.Stream, device: torch.device) -> None:
    """Later copies, which may get a batch's memory, wait until what was done with it is done.

    ``Tensor.record_stream`` would do, too, but the allocator then looks at events when the batch is
    freed, and that breaks a CUDA graph which is being captured.
    """
    copies.wait_event(torch.cuda.current_stream(device).record_event())
