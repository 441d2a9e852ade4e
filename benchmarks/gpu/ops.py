"""The ops against PyTorch's own on the grid of the CPU benchmark, in TF32 and in full float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

from torch import Tensor

from benchmarks import ops
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.timing import PRECISIONS, Clock, Job, precision
from benchmarks.harness import Row, Timing, verify
from benchmarks.ops import DENSITIES, Block, Conv, TopK

#: Largest error of a product of float32, relative to the largest entry, by precision.
BOUNDS = {"tf32": 2e-3, "float32": 1e-5}
CALLS = 10


def jobs(clock: Clock, ceilings: Ceilings, *, quick: bool, tiny: bool = False) -> Iterator[Job]:
    """What is to be measured, what matters most first; ``tiny`` only exercises the code."""
    for shape in [Conv("forward", 2, 3, 4, 5, 6, 1, 1.0)] if tiny else conv_shapes(quick):
        for name in PRECISIONS:
            yield partial(run_conv, clock, ceilings, shape, name)
    for block in [Block("forward", 2, 3, 4, 6, True)] if tiny else ops.block_grid(quick):
        yield partial(run_sides, clock, "block", block, ops.block_sides, 1e-4)
    for topk in [TopK(100, 0.5)] if tiny else ops.topk_grid(quick):
        yield partial(run_sides, clock, "topk_mask", topk, ops.topk_sides, 0.0)


def conv_shapes(quick: bool) -> list[Conv]:
    """The convolutions without their densities: several tasks and large maps before the rest."""
    shapes = dict.fromkeys(replace(case, density=1.0) for case in ops.conv_grid(quick))
    return sorted(shapes, key=lambda shape: (shape.tasks == 1, -shape.size))


def run_conv(clock: Clock, ceilings: Ceilings, shape: Conv, name: str) -> list[Row]:
    """One convolution at every density, in one precision; stock does not care for the density."""
    cases = {density: replace(shape, density=density) for density in DENSITIES}
    variants: dict[str, Callable[[], Tensor]] = {}
    errors, kept = {}, {}
    with precision(name):
        for density, case in cases.items():
            x, weight, mask, grad = (t.to(clock.device) for t in case.tensors())
            effective = weight * mask[..., None, None]
            ours = ops.our_conv(case, x, weight, mask, grad)
            expected = ops.definition(case, x.double(), effective.double(), grad.double())
            if case.op == "weight gradient":
                expected = expected * mask[..., None, None]
            errors[density] = verify(f"{case}, {name}", ours(), expected, BOUNDS[name])
            kept[density] = mask.mean().item()
            variants[f"ours at {density}"] = ours
            if density == 1.0:
                stock = dict(ops.stock_conv(case, x, effective, grad))
        calls = {k: clock.repeated(run, CALLS) for k, run in {**variants, **stock}.items()}
        timings = clock.interleave(calls, budget=0.05, most=20, calls=CALLS)
    ours_timings = {density: timings.pop(f"ours at {density}") for density in cases}
    return [
        Row(
            "conv",
            {**asdict(case), "precision": name},
            errors[density],
            ours_timings[density],
            timings,
            achieved(case, name, kept[density], ours_timings[density], ceilings),
        )
        for density, case in cases.items()
    ]


def achieved(
    case: Conv, name: str, kept: float, timing: Timing, ceilings: Ceilings
) -> dict[str, float]:
    """TFLOP/s of the active kernels, TB/s of every tensor once, and the shares of the ceilings."""
    t, n, i, o = case.tasks, case.samples, case.in_channels, case.out_channels
    out = (case.size - 1) // case.stride + 1
    tflops = 2 * 9 * t * n * i * o * out**2 * kept / timing.median / 1e12
    numbers = t * (n * i * case.size**2 + n * o * out**2 + 9 * i * o)
    tbs = 4 * numbers / timing.median / 1e12
    return {
        "tflops": tflops,
        "of_tflops": tflops / ceilings.tflops(name),
        "tbs": tbs,
        "of_tbs": tbs / ceilings.copy_tbs,
    }


def run_sides(
    clock: Clock,
    group: str,
    case: Block | TopK,
    sides: Callable[..., tuple[Callable[[], Tensor], ...]],
    bound: float,
) -> list[Row]:
    """An op that no precision of products touches, against one stock way."""
    ours, stock = sides(case, clock.device)
    error = verify(str(case), ours(), stock(), bound)
    variants = {"ours": ours, "one after another": stock}
    calls = {name: clock.repeated(run, CALLS) for name, run in variants.items()}
    timings = clock.interleave(calls, budget=0.05, most=20, calls=CALLS)
    return [Row(group, asdict(case), error, timings.pop("ours"), timings)]
