"""Runs the CUDA C++ kernels, emulated and instrumented, in several orders of blocks and threads.

Operands end, in one order, and begin, in the next, at a page that nobody may touch.

``python -m support.cuda_races [PATTERN]`` prints, as JSON, how many calls were made, the accesses
of a launch that no barrier orders, and the calls whose result depends on the order, each by the
name of the call. A process of its own, because the ops of the emulation are registered once.
"""

import fnmatch
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from support import cpu_kernels, cuda_emulator
from support.cpu_kernels import Case
from support.operands import guarded
from support.softmax_head import Head

SEEDS = (1, 2, 3)
# Emulated devices and the code on them: without clusters, and with.
DEVICES = {"sm_80": ("8", "80"), "sm_90": ("9", "90")}
CONVOLUTIONS = {
    "narrow": Case(2, 3, 5, 7, 9, 11),
    "many channels": Case(1, 2, 70, 35, 6, 5),
    "strided": Case(2, 4, 9, 6, 7, 5, stride=(2, 2)),
    "strided, no padding": Case(1, 3, 3, 8, 8, 6, stride=(2, 2), padding=(0, 0)),
    "cut": Case(2, 1, 3, 2, 12, 67, padding=(0, 0)),
}
HEADS = {
    "dual": Head(tasks=2, samples=25, features=64, classes=5),
    "primal": Head(tasks=1, samples=40, features=4, classes=5),
    "many classes": Head(tasks=1, samples=14, features=20, classes=21),
}
Call = Callable[["Place"], object]
Place = Callable[[Tensor], Tensor]


def calls(ops) -> Iterator[tuple[str, Call]]:
    """Each kernel in its kinds, by name; a call returns what is compared between orders."""
    for n in (1, 1027, 4201):
        scores, k = torch.randn(3, n).round(decimals=1), torch.tensor([0, n // 3, n])
        yield f"topk_mask of {n}", lambda at, s=scores, k=k: ops.topk_mask(at(s), at(k))
    for size in (3, 1003, 5000):
        yield f"cg_step of {size}", lambda at, size=size: _cg_step(ops, at, size)
    for name, case in CONVOLUTIONS.items():
        for kind, dtype in (("half", torch.float32), ("all", torch.float64)):
            title = f"convolutions, {name}, {kind}, {dtype}"
            yield title, lambda at, c=case, k=kind, d=dtype: _convolutions(ops, at, c, k, d)
    for name, head in HEADS.items():
        for dtype in (torch.float32, torch.float64):
            yield f"softmax_head, {name}, {dtype}", lambda at, h=head, d=dtype: _head(ops, at, h, d)


def _cg_step(ops, at: Place, size: int) -> list[Tensor]:
    r, p, x = torch.randn(3, 4, size)
    q, diagonal = p * torch.rand(4, size), torch.rand(4, size)
    rz, rr = (r * diagonal * r).double().sum(1), (r * r).double().sum(1)
    limit, status = torch.zeros(4).double(), torch.tensor([1, 1, 0, 1])
    state = [x, r, p, q, diagonal, rz, rr, limit, status, torch.zeros(4, dtype=torch.int64)]
    state = [at(each) for each in state]
    ops.cg_step(*state)
    return state


def _convolutions(ops, at: Place, case: Case, kind: str, dtype: torch.dtype) -> list[Tensor]:
    x = torch.randn(case.tasks, case.samples, case.inputs, case.height, case.width, dtype=dtype)
    weight = torch.randn(case.tasks, case.outputs, case.inputs, 3, 3, dtype=dtype)
    bias = torch.randn(case.tasks, case.outputs, dtype=dtype)
    x, weight, bias = at(x), at(weight), at(bias)
    mask = at(cpu_kernels.make_mask("half", case).to(dtype)) if kind == "half" else None
    window, size = (case.stride, case.padding), [case.height, case.width]
    y = ops.masked_conv(x, weight, mask, bias, *window)
    grad = at(torch.randn(y.shape, dtype=dtype))
    first, second = (x, weight, mask), (at(x * 2), at(weight * 3), mask)
    back = (grad, weight, mask)
    return [
        y,
        ops.masked_conv_input_grad(*back, size, *window),
        ops.masked_conv_weight_grad(grad, x, mask, [3, 3], *window),
        ops.masked_conv_pair(*first, *second, None, *window),
        ops.masked_conv_input_grad_pair(*back, *back, size, *window),
        ops.masked_conv_weight_grad_pair(grad, x, at(grad * 2), x, mask, [3, 3], *window),
    ]


def _head(ops, at: Place, head: Head, dtype: torch.dtype) -> list[Tensor]:
    given, labels = head.problem()
    features, center, lam = (at(given[name].to(dtype)) for name in ("x", "weight", "lam"))
    labels = at(labels)
    weight, *report = ops.softmax_head(features, labels, center, lam, 1e-6, 50)
    grad = at(torch.randn_like(weight))
    grads = ops.softmax_head_grad(grad, weight, features, labels, center, lam)
    return [weight, *report, *grads]


def _bits(value: object) -> list[bytes]:
    tensors = value if isinstance(value, list) else [value]
    return [each.contiguous().view(torch.uint8).numpy().tobytes() for each in tensors]


def main() -> None:
    pattern = sys.argv[1] if len(sys.argv) > 1 else "*"
    torch.set_num_threads(1)
    ops = cuda_emulator.load(logs=True)
    assert ops.logs_accesses()
    found: dict[str, object] = {"calls": 0, "findings": {}, "differing": []}
    for device, (major, code) in DEVICES.items():
        os.environ |= {"METASPARSE_EMULATED_MAJOR": major, "METASPARSE_EMULATED_PTX": code}
        for name, call in calls(ops):
            if not fnmatch.fnmatch(name, pattern):
                continue
            results = []
            for seed in SEEDS:
                os.environ["METASPARSE_EMULATED_SEED"] = str(seed)
                torch.manual_seed(0)
                results.append(_bits(call(partial(guarded, at_end=seed % 2 == 1))))
                if findings := ops.findings():
                    found["findings"][f"{name}, {device}, order {seed}"] = findings.splitlines()[:3]
                found["calls"] += 1
            if any(result != results[0] for result in results):
                found["differing"].append(f"{name}, {device}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
