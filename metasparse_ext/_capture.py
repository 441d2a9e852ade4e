"""Whole meta-steps as one CUDA graph."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from metasparse_ext._arguments import LARGEST, refuse, require_callable, require_count, shown

Result = TypeVar("Result")

logger = logging.getLogger("metasparse_ext")

_unobserved: ContextVar[bool] = ContextVar("metasparse_unobserved", default=False)


class CaptureError(RuntimeError):
    """CUDA refused to capture a meta-step; the message says how to do without."""


def observed() -> bool:
    """Whether the host may look at values on the device.

    Not inside a meta-step that is captured: its Python code runs once and its kernels run again and
    again, so whatever would be decided by a value has to be decided on the device.
    """
    return not _unobserved.get()


@contextmanager
def unobserved() -> Generator[None]:
    """Makes :func:`observed` false for the code inside."""
    token = _unobserved.set(True)
    try:
        yield
    finally:
        _unobserved.reset(token)


def capture(meta_step: Callable[[Any], Result], *, warmup: int = 3) -> Captured[Result]:
    """Captures a whole meta-step in one CUDA graph and replays it with new episodes.

    A meta-step is hundreds of small launches: on a GPU their cost is its time. Captured, it is one
    launch, inner loop, conjugate gradients, meta-gradient and optimizer step included::

        optimizer = torch.optim.Adam(learner.parameters(), lr=torch.tensor(1e-3, device="cuda"),
                                     capturable=True, fused=True)

        def meta_step(batch):
            optimizer.zero_grad()
            metrics = learner.meta_backward(batch)
            optimizer.step()
            return metrics

        step = metasparse_ext.capture(meta_step)
        for batch in episodes:
            metrics = step(batch)

    The first ``warmup`` calls run ``meta_step`` eagerly, on the stream that will capture: they are
    ordinary meta-steps, so a captured training takes the steps of an eager one, in the same order.
    The next call captures, which runs nothing, and replays; so do all calls after it, on copies of
    their batch in the graph's own input tensors. Batches of other shapes run eagerly.

    What cannot be captured runs eagerly for good. The reason is logged once, and kept in
    ``reason``: the batch is not on a CUDA device, or the last warm-up call made the host wait for
    the device (the line of the call is named). A capture that CUDA refuses ends in an error: what
    it leaves behind on the device is not known, so no step follows it unasked.

    What ``meta_step`` has to keep to: no host synchronisation (learners look at their losses only
    where :func:`observed`); numbers that change, such as a learning rate, are tensors on the device
    that are filled in place; its state (parameters, optimizer) keeps its memory, so load a state
    dict before the first call or capture anew; gradients come from ``torch.autograd.grad``, as in
    every learner of this package, or ``.backward()`` is not called outside of the step.

    Args:
        meta_step: From a meta-batch (a tensor, or tuples, dicts or dataclasses of such) to what it
            measured (likewise; numbers and None pass through as they were at capture).
        warmup: Eager calls before the capture, at least 1.

    Returns:
        A callable like ``meta_step``, whose results are the caller's own copies.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if warmup is below 1.
        CaptureError: in a call, if CUDA refuses the capture; the message says how to do without.
    """
    require_callable("capture", "meta_step", meta_step, "a function of a meta-batch")
    require_count("capture", "warmup", warmup, least=1, most=LARGEST)
    return Captured(meta_step, warmup)


class Captured(Generic[Result]):
    """A meta-step that becomes a CUDA graph; see :func:`capture`.

    Attributes:
        reason: Why it runs eagerly for good, or None.
    """

    reason: str | None = None

    def __init__(self, meta_step: Callable[[Any], Result], warmup: int) -> None:
        self._meta_step, self._left = meta_step, warmup
        self._inputs: Any = None
        self._graph: _CudaGraph | None = None

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._graph is not None and self._graph.recorded

    def __call__(self, batch: Any) -> Result:
        if self.reason is None and self._inputs is None:
            self._begin(batch)
        graph = self._graph
        if graph is None or not self._fill(batch):
            return self._meta_step(batch)
        if self._left > 0:
            return self._warm_up(graph)
        if not graph.recorded:
            try:
                with unobserved():
                    graph.record(self._step)
            except RuntimeError as error:
                self.reason, self._graph, self._inputs = f"CUDA refused: {_line(error)}", None, None
                raise CaptureError(
                    f"capture: {self.reason}; the meta-step has not run. Without capture it may: "
                    "metasparse train --no-capture, or call the meta-step itself"
                ) from error
        return _map(torch.clone, graph.replay())

    def _step(self) -> Result:
        return self._meta_step(self._inputs)

    def _begin(self, batch: Any) -> None:
        tensors = list(_tensors(batch))
        if not tensors:
            refuse(
                "capture", "batch", "a tensor or a structure of tensors", shown(batch), TypeError
            )
        device = tensors[0].device
        if obstacle := _obstacle(device):
            self._give_up(obstacle)
            return
        self._graph = _CudaGraph(device)
        self._inputs = _map(torch.empty_like, batch)

    def _fill(self, batch: Any) -> bool:
        """Copies a batch into the static inputs, if it has their shapes."""
        inputs, tensors = list(_tensors(self._inputs)), list(_tensors(batch))
        if [(t.shape, t.dtype) for t in inputs] != [(t.shape, t.dtype) for t in tensors]:
            return False
        for own, new in zip(inputs, tensors, strict=True):
            own.copy_(new, non_blocking=True)
        return True

    def _warm_up(self, graph: _CudaGraph) -> Result:
        """An eager meta-step as it will be captured; the last one must not stop the host."""
        self._left -= 1
        with unobserved():
            result, stops = graph.rehearse(self._step, watched=self._left == 0)
        if stops:
            self._give_up(f"the host waits for the device: {stops[0]}")
        return result

    def _give_up(self, reason: str) -> None:
        self.reason, self._graph, self._inputs = reason, None, None
        logger.warning("capture: the meta-step runs eagerly: %s", reason)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the batch is on {device}"
    return None


class _CudaGraph:
    """A CUDA graph, the stream that it is captured on, and the results that it writes."""

    recorded = False

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def rehearse(self, step: Callable[[], Result], *, watched: bool) -> tuple[Result, list[str]]:
        """Runs a step on the stream; if watched, also lists where the host waited for it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _synchronisations(watched) as stops:
            result = step()
        current.wait_stream(self._stream)
        return result, stops

    def record(self, step: Callable[[], object]) -> None:
        """Records the launches of a step, none of which runs."""
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream the current one: the outer context puts it back.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            # Other threads, which load data, may go on allocating.
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            self._results = step()
        self._graph, self.recorded = graph, True

    def replay(self) -> Any:
        """Runs what was recorded; the results lie where the next replay will write its own."""
        self._graph.replay()
        return self._results


@contextmanager
def _synchronisations(watched: bool) -> Generator[list[str]]:
    """Gathers the places where PyTorch makes the host wait for the device, by its own account."""
    stops: list[str] = []
    if not watched:
        yield stops
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield stops
        finally:
            torch.cuda.set_sync_debug_mode(before)
    stops += [
        f"{found.filename}:{found.lineno}"
        for found in caught
        if "called a synchronizing" in str(found.message)
    ]


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same structure with ``function`` of every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(function, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_map(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(
            value, **{f.name: _map(function, getattr(value, f.name)) for f in fields}
        )
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a structure, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(note, value)
    return iter(found)
