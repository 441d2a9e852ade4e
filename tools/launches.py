"""Counts the nodes that a meta-step is in a CUDA graph, without a GPU.

The meta-step runs on the meta device, where nothing is computed, with the ops of this package
served as on CUDA: the rules choose a backend, Triton's launchers run up to their launches, and
PyTorch's operators are seen by the profiler wherever they are called from, inside our ops and by
autograd. ``python -m tools.launches`` prints the nodes of each learner by kernel and operator.

An operator that has a kernel of its own counts as one launch, unless it only allocates or makes a
view. PyTorch's may be more: a convolution of cuDNN with a workspace to clear, a reduction in two
stages. Where the solver of the exact head is CUDA C++, it counts as the one launch that it is.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

import metasparse_ext as ms
from metasparse_ext._capture import unobserved
from metasparse_ext.algorithms import IMAML, MAML, ConvexIMAML, MetaDOCK, MetaLearner
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.nn import Conv4
from metasparse_ext.ops import conv_backward, cuda

#: How the table calls a way to serve the convolutions, and the backend that is forced for it.
WAYS = {"Triton": "triton", "default": None}

_TASKS, _CLASSES = 4, 5

# Launches of operators that the meta device, or PyTorch where there is no GPU, makes of others. The
# norms of many tensors begin with memory that is cleared and end with a launch that joins blocks.
_LAUNCHES = {
    "aten::copy_": 1,
    "aten::zeros": 1,
    "aten::ones": 1,
    "aten::full": 1,
    "aten::convolution": 1,
    "aten::convolution_backward": 1,
    "aten::_foreach_add_": 1,
    "aten::_foreach_norm": 3,
}
# Operators with a kernel that launches nothing.
_FREE = {"aten::as_strided", "aten::empty", "aten::empty_strided", "aten::view", "aten::unfold"}
_FREE |= {"aten::_reshape_alias", "aten::resize_", "aten::set_", "aten::detach"}


class Case(NamedTuple):
    """A learner and the size of its tasks."""

    learner: Callable[[], MetaLearner]
    shots: int
    queries: int
    image: tuple[int, int, int]


def _omniglot() -> Conv4:
    return Conv4(1, 28, 64, ways=_CLASSES)


CASES = {
    "MetaDOCK": Case(
        lambda: MetaDOCK(Conv4(3, 32, 64, ways=_CLASSES), inner_steps=16, cg_steps=5),
        *(5, 5, (3, 32, 32)),
    ),
    "IMAML": Case(lambda: IMAML(_omniglot(), inner_steps=16, cg_steps=5), 1, 15, (1, 28, 28)),
    "MAML": Case(lambda: MAML(_omniglot(), inner_steps=5), 1, 15, (1, 28, 28)),
    "ConvexIMAML": Case(lambda: ConvexIMAML(_omniglot()), 1, 15, (1, 28, 28)),
}


def nodes(name: str, backend: str | None = None) -> Counter[str]:
    """The nodes of a meta-step after the first, by kernel and operator.

    Args:
        name: Of :data:`CASES`.
        backend: Forced for the ops that it can serve, as by ``ms.backend``; None: by the rules.
    """
    case = CASES[name]
    learner = case.learner().to("meta")
    batch = TaskBatch(_samples(case, case.shots), _samples(case, case.queries))
    forced = nullcontext() if backend is None else ms.backend(backend, "cuda")
    with _as_on_cuda() as launches, unobserved(), forced:
        learner.meta_backward(batch)
        launches.clear()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            learner.meta_backward(batch)
    for event in profiler.events():
        if event.cpu_parent is None:
            _count(event, launches)
    return launches


def _samples(case: Case, each: int) -> Samples:
    images = torch.empty(_TASKS, _CLASSES * each, *case.image, device="meta")
    labels = torch.empty(_TASKS, _CLASSES * each, dtype=torch.int64, device="meta")
    return Samples(images, labels)


def _count(event, launches: Counter[str]) -> None:
    """Adds the launches of an event of the profiler, and of those inside it."""
    found = _launches_of(event.name)
    if found is not None:
        launches[event.name] += found
        return
    for child in event.cpu_children:
        _count(child, launches)


def _launches_of(name: str) -> int | None:
    """What one call of an operator launches; None if that is for the operators inside to say."""
    if name in _LAUNCHES:
        return _LAUNCHES[name]
    if name in _FREE or not name.startswith("aten::"):
        return None
    return 1 if _has_kernel(name) else None


def _has_kernel(name: str) -> bool:
    """Whether a form of an operator is no composition of others."""
    overloads = torch._C._jit_get_operation(name)[1] or []
    qualified = (f"{name}.{overload}" if overload else name for overload in overloads)
    known = (each for each in qualified if torch._C._dispatch_has_kernel(each))
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(each, "CPU") for each in known)


@contextmanager
def _as_on_cuda() -> Iterator[Counter[str]]:
    """Serves tensors of the meta device as those of a GPU; counts launches by name."""
    launches: Counter[str] = Counter()

    def launch(kernel: JITFunction | InterpretedFunction, *_, **__) -> None:
        launches[kernel.fn.__name__] += 1

    def serve(op: str, shapes: Callable, *args):
        # Built with CUDA, the package solves heads by a kernel that is not there now.
        if op.startswith("softmax_head"):
            launches[f"{op} (CUDA C++)"] += 1
            return shapes(*args)
        return cuda.run(op, *args)

    heads = {"softmax_head": _head, "softmax_head_grad": _head_grad}
    with (
        torch.library._scoped_library("metasparse", "IMPL") as library,
        mock.patch.object(JITFunction, "run", launch),
        mock.patch.object(InterpretedFunction, "run", launch),
        mock.patch.object(cuda, "problem", _problem),
    ):
        for op in cuda.OPS:
            library.impl(op, partial(serve, op, heads.get(op)), "Meta", allow_override=True)
        backward = conv_backward.masked_conv_backward
        library.impl("masked_conv_backward", backward, "Meta", allow_override=True)
        # It has no kernel for CUDA, so that key means what serves all devices but the CPU.
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        mask = partial(torch.ops.metasparse.binary_mask.default.redispatch, keys)
        library.impl("binary_mask", mask, "Meta", allow_override=True)
        yield launches


def _problem(backend: str, _capability: tuple[int, int] | None = None) -> str | None:
    """Kernels of CUDA C++, there or emulated, compute: they are not for the meta device."""
    return "it computes" if backend == "cuda" else None


def _head(features, labels, center, lam, tolerance, max_iterations):
    count = torch.empty(len(lam), dtype=torch.int64, device=lam.device)
    residual = torch.empty(len(lam), dtype=torch.float64, device=lam.device)
    return torch.empty_like(center), count, residual, torch.empty_like(count)


def _head_grad(grad, weight, features, labels, center, lam):
    return torch.empty_like(features), torch.empty_like(center), torch.empty_like(lam)


def table(counts: dict[str, Counter[str]]) -> str:
    """Columns of counts by kernel, the most frequent first, as Markdown."""
    rows = sorted(
        set().union(*counts.values()), key=lambda row: (-max(c[row] for c in counts.values()), row)
    )
    lines = [("kernel", *counts), ("---",) * (len(counts) + 1)]
    lines += [(row.removeprefix("aten::"), *(str(c[row]) for c in counts.values())) for row in rows]
    lines += [("all", *(str(c.total()) for c in counts.values()))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("learners", nargs="*", metavar="LEARNER", help=", ".join(CASES))
    chosen = parser.parse_args(arguments).learners or list(CASES)
    for name in chosen:
        if name not in CASES:
            parser.error(f"expected LEARNER to be one of {', '.join(CASES)}, got {name}")
        print(f"\n{name}\n")
        print(table({way: nodes(name, backend) for way, backend in WAYS.items()}))


if __name__ == "__main__":
    main()
