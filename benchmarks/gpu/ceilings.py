"""What the GPU itself can do, measured beside every result: nothing is faster than this."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from benchmarks.gpu.timing import PRECISIONS, Clock, precision


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of the device.

    Attributes:
        copy_tbs: TB/s of a copy on the device, bytes read and written.
        tf32_tflops, float32_tflops: Of a square matrix product in that precision.
        node_us: Microseconds of a graph node that does nothing worth mentioning, each waiting for
            the one before; ``node_1mb_us`` of one that reads and writes a megabyte.
    """

    copy_tbs: float
    tf32_tflops: float
    float32_tflops: float
    node_us: float
    node_1mb_us: float

    def tflops(self, name: str) -> float:
        """Of a precision."""
        return self.tf32_tflops if name == "tf32" else self.float32_tflops

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def measure(clock: Clock, *, tiny: bool = False) -> Ceilings:
    """Measures all of them; ``tiny`` only exercises the code."""
    return Ceilings(
        copy_tbs=_copy(clock, 2**12 if tiny else 2**28),
        **{f"{name}_tflops": _product(clock, 64 if tiny else 8192, name) for name in PRECISIONS},
        node_us=_node(clock, 1, 10 if tiny else 1000),
        node_1mb_us=_node(clock, 2**18, 10 if tiny else 1000),
    )


def _copy(clock: Clock, floats: int) -> float:
    source = torch.ones(floats, device=clock.device)
    target = torch.empty_like(source)
    found = clock.interleave({"copy": lambda: target.copy_(source)}, budget=0.1)
    return 2 * source.nbytes / found["copy"].median / 1e12


def _product(clock: Clock, size: int, name: str) -> float:
    a, b = torch.randn(2, size, size, device=clock.device)
    with precision(name):
        found = clock.interleave({name: lambda: torch.mm(a, b)}, budget=0.3)
    return 2 * size**3 / found[name].median / 1e12


def _node(clock: Clock, floats: int, nodes: int) -> float:
    x = torch.zeros(floats, device=clock.device)
    chain = clock.repeated(lambda: x.add_(1), nodes)
    return clock.interleave({"node": chain}, budget=0.1, calls=nodes)["node"].median * 1e6
