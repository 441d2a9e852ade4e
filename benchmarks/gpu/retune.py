"""The table of CUDA backends, measured: the calls that meta-steps make, on every candidate.

Candidates of Triton are the table's present cut and those that differ from it in one number. A
candidate that does not compile, does not fit, or gives another result than PyTorch's own operators
is none. Calls for which no time is left keep the rows they had.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks import ops
from benchmarks.gpu import meta_steps
from benchmarks.gpu.ops import BOUNDS, CALLS, conv_shapes
from benchmarks.gpu.timing import PRECISIONS, Clock, precision
from benchmarks.harness import WrongResult, verify
from metasparse_ext.ops import cuda as backends
from metasparse_ext.ops import cuda_table
from metasparse_ext.ops.backends import backend

Call = tuple[str, tuple[tuple[str, int | str], ...]]


class Calls(TorchDispatchMode):
    """Notes one call of every op and size that passes, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Call, tuple] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "metasparse" and name in backends.OPS:
            call = name, tuple(backends.OPS[name].features(*args).items())
            if call not in self.found:
                self.found[call] = _copied(args)
        return func(*args, **(kwargs or {}))


def run(clock: Clock, until: float, folder: Path, *, tiny: bool = False) -> str:
    """Measures until then and, on a GPU, writes the table to a folder; says what was done."""
    calls = recorded(clock, tiny=tiny)
    rows = []
    for (op, features), args in calls.items():
        if time.monotonic() > until:
            break
        best = fastest(clock, op, dict(features), args)
        rows.append(cuda_table.measured(op, dict(features), best.backend, best.options))
        print(".", end="", file=sys.stderr, flush=True)
    found = f"\n{len(rows)} of {len(calls)} calls measured"
    if not clock.on_gpu:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / cuda_table.PATH.name
    cuda_table.write(rows, torch.cuda.get_device_name(), path)
    return f"{found}; to use the table: cp {path} {cuda_table.PATH}"


def recorded(clock: Clock, *, tiny: bool = False) -> dict[Call, tuple]:
    """The calls of meta-steps, and then of the grid of convolutions, in both precisions."""
    calls = Calls()
    cases = list(meta_steps.tiny_cases() if tiny else meta_steps.cases(quick=False))
    shapes = [] if tiny else conv_shapes(quick=True)
    for name in PRECISIONS:
        with precision(name):
            for case in cases:
                sides = meta_steps.SIDES[case.learner](case, torch.float32, clock.device)
                with calls:
                    sides.meta_backward(sides.batch)
            for shape in shapes:
                for density in ops.DENSITIES:
                    tensors = [
                        t.to(clock.device) for t in replace(shape, density=density).tensors()
                    ]
                    with calls:
                        ops.our_conv(shape, *tensors)()
    return calls.found


def fastest(
    clock: Clock, op: str, features: Mapping[str, int | str], args: tuple
) -> backends.Choice:
    """The quickest of the candidates that give the right result."""
    name = features.get("precision")
    seconds: dict[int, float] = {}
    choices = near(op, args, backends.candidates(op, args))
    with precision(name) if name in PRECISIONS else nullcontext():
        expected = outcome(op, backends.Choice("dense"), args)
        bound = 2 * BOUNDS.get(name, 1e-5)
        for number, choice in enumerate(choices):
            try:
                for actual, right in zip(outcome(op, choice, args), expected, strict=True):
                    verify(f"{op} {choice}", actual, right, bound)
                own = _copied(args)
                call = clock.repeated(
                    lambda c=choice, own=own: backends.run_choice(op, c, own), CALLS
                )
                seconds[number] = min(clock.seconds(call) for _ in range(5 if clock.on_gpu else 1))
            except WrongResult as error:
                print(f"\n{error}", file=sys.stderr)
            except Exception as error:  # whatever a compiler or a launch may raise
                print(f"\n{op} {choice}: {type(error).__name__}", file=sys.stderr)
    return choices[min(seconds, key=seconds.get)]


def near(op: str, args: tuple, candidates: Iterable[backends.Choice]) -> list[backends.Choice]:
    """Backends without options, and Triton's cuts that differ from the present in one number."""
    candidates = list(candidates)
    if not any(choice.backend == "triton" for choice in candidates):
        return candidates
    with backend("triton", "cuda"):
        present = backends.choose(op, args).options
    first = {name: values[0] for name, values in backends.OPS[op].grid.items()}
    cut = {**first, **present}

    def distance(options: Mapping[str, Any]) -> int:
        return sum(options[name] != value for name, value in cut.items() if name in options)

    return [c for c in candidates if c.backend != "triton" or distance(c.options) <= 1]


def outcome(op: str, choice: backends.Choice, args: tuple) -> list[Tensor]:
    """All that a call makes or changes, in floating point."""
    own = _copied(args)
    made = backends.run_choice(op, choice, own)
    if op == "softmax_head":  # the way to the minimiser is a backend's own
        return [made[0].double()]
    return [t.double() for t in tree_leaves((made, own)) if isinstance(t, Tensor) and t.numel()]


def _copied(args: tuple) -> tuple:
    return tree_map_only(Tensor, _copy, args)


def _copy(tensor: Tensor) -> Tensor:
    """Memory of its own; what the tasks share stays shared, by a stride of zero."""
    tensor = tensor.detach()
    shape = tensor.shape
    for axis, (size, stride) in enumerate(zip(shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor.clone().expand(shape)
