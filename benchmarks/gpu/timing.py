"""Time on a GPU: by its own events, kernels back to back in a graph, precision stated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from benchmarks.harness import Row, Timing, summary

#: The two precisions of float32 products, by the name that every row states.
PRECISIONS = ("tf32", "float32")

#: Measures one case; nothing of it is timed before it was verified.
Job = Callable[[], list[Row]]


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Float32 convolutions and matrix products in TF32, or in full float32."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


class Clock:
    """Seconds of a call on a device: from event to event on a GPU, on the wall elsewhere.

    The CPU only serves to exercise the benchmark; its times say nothing.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.on_gpu = device == "cuda"

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """One call, from an idle device to its end."""
        self.wait()
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def repeated(self, call: Callable[[], object], times: int) -> Callable[[], object]:
        """So many calls as one: on a GPU a graph, so that launches from the host do not count."""
        if not self.on_gpu:
            return lambda: [call() for _ in range(times)]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(times):
                call()
        return graph.replay

    def interleave(
        self,
        variants: Mapping[str, Callable[[], object]],
        *,
        budget: float,
        least: int = 3,
        most: int = 50,
        calls: int = 1,
    ) -> dict[str, Timing]:
        """Times the variants in turn, A B C A B C …; seconds of one of the ``calls`` in a variant.

        Args:
            variants: By name; each is run twice before.
            budget: Seconds to spend, as far as ``least`` rounds and at most ``most`` allow.
        """
        for _ in range(2 if self.on_gpu else 1):
            once = sum(self.seconds(call) for call in variants.values())
        rounds = max(least, min(most, int(budget / max(once, 1e-9)))) if self.on_gpu else 2
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name, call in variants.items():
                seconds[name].append(self.seconds(call) / calls)
        return {name: summary(values) for name, values in seconds.items()}

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """Memory that a call needs at most beside what lies on the GPU already."""
        if not self.on_gpu:
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - before
