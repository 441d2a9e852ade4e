"""Every CPU backend of the masked convolution against float64 convolutions of the definition.

Run as a program, it checks all backends with the instruction set that METASPARSE_CPU_ISA names:
that choice is made once per process.
"""

import sys
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import metasparse_ext  # noqa: F401  (registers the ops)

OPS = torch.ops.metasparse


class Case(NamedTuple):
    tasks: int
    samples: int
    inputs: int
    outputs: int
    height: int
    width: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        t, n, i, o, h, w, k, s, p = self
        return f"T{t} N{n} {i}>{o} {h}x{w} k{k[0]}{k[1]} s{s[0]}{s[1]} p{p[0]}{p[1]}"


STRIDE1 = [
    Case(2, 5, 4, 3, 1, 1),
    Case(2, 3, 5, 7, 9, 11),
    Case(1, 2, 3, 4, 9, 8, padding=(0, 2)),
    Case(1, 1, 2, 3, 23, 37),
    Case(1, 2, 70, 67, 6, 5),
]
STRIDE2 = [
    Case(2, 5, 4, 3, 2, 1, stride=(2, 2)),
    Case(2, 4, 9, 6, 7, 5, stride=(2, 2)),
    Case(2, 9, 3, 8, 4, 4, stride=(2, 2)),
    Case(1, 1, 2, 3, 25, 38, stride=(2, 2)),
    Case(1, 2, 67, 70, 6, 5, stride=(2, 2)),
]
GENERAL = [
    Case(1, 9, 2, 3, 1, 1, (1, 1), (1, 1), (0, 0)),
    Case(1, 2, 4, 3, 13, 10, (5, 2), (3, 1), (2, 0)),
    Case(2, 3, 4, 3, 12, 17, (2, 5), (1, 3), (0, 2)),
    Case(2, 2, 3, 2, 6, 7, (1, 1), (3, 2), (1, 1)),
    Case(1, 2, 3, 4, 5, 5, (3, 3), (1, 1), (3, 3)),
]
BACKENDS = {
    "direct": STRIDE1 + STRIDE2 + GENERAL,
    "winograd2": STRIDE1,
    "winograd3": STRIDE1,
    "winograd4": STRIDE1,
    "winograd5": STRIDE1,
    "polyphase2": STRIDE2,
    "polyphase3": STRIDE2,
    "automatic": STRIDE1 + STRIDE2 + GENERAL,
    "precise": STRIDE1 + STRIDE2,
}
# Largest error over the largest element, float32. On fewer outputs than a layer has, F(4) and F(5)
# may exceed by a little the 1e-5 that holds there.
EXACT = 2e-6
TOLERANCE = {"winograd3": 1e-5, "winograd4": 2e-5, "winograd5": 2e-5, "automatic": 2e-5}
MASKS = ("none", "half", "weighted", "shared", "empty")


def make_mask(kind: str, case: Case) -> Tensor | None:
    shape = (case.tasks, case.outputs, case.inputs)
    active = (torch.rand(shape) < 0.5).double()
    if kind == "shared":
        return active[:1].expand(shape)
    return {
        "none": None,
        "half": active,
        "weighted": active * torch.rand(shape, dtype=torch.float64),
        "empty": torch.zeros(shape, dtype=torch.float64),
    }[kind]


def defined(x: Tensor, weight: Tensor, mask: Tensor | None, bias: Tensor, case: Case) -> Tensor:
    """The definition, one task and one dense convolution after the other."""
    effective = weight if mask is None else weight * mask[..., None, None]
    results = [
        conv2d(x[t], effective[t], bias[t], case.stride, case.padding) for t in range(case.tasks)
    ]
    return torch.stack(results)


def relative_error(got: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp_min(1e-30)
    return ((got.double() - expected).abs().max() / scale).item()


def errors(backend: str, case: Case, mask_kind: str, dtype: torch.dtype) -> dict[str, float]:
    """The largest relative error of each operation."""
    x = torch.randn(case.tasks, case.samples, case.inputs, case.height, case.width).double()
    weight = torch.randn(case.tasks, case.outputs, case.inputs, *case.kernel).double()
    bias = torch.randn(case.tasks, case.outputs).double()
    mask = make_mask(mask_kind, case)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    y = defined(*leaves, mask, bias, case)
    grad = torch.randn(y.shape).double()
    grad_x, grad_weight = torch.autograd.grad(y, leaves, grad)

    cast = [None if t is None else t.detach().to(dtype) for t in (x, weight, bias, mask, grad)]
    x_, weight_, bias_, mask_, grad_ = cast
    if mask is not None:
        weight_ = weight_.masked_fill((mask == 0)[..., None, None], float("nan"))
        mask_ = mask_[:1].expand(mask.shape) if mask_kind == "shared" else mask_
    window = (case.stride, case.padding)
    image = (case.height, case.width)
    OPS.set_conv_backend(backend)
    try:
        return {
            "forward": relative_error(
                OPS.masked_conv(x_, weight_, mask_, bias_, *window), y.detach()
            ),
            "input_grad": relative_error(
                OPS.masked_conv_input_grad(grad_, weight_, mask_, image, *window), grad_x
            ),
            "weight_grad": relative_error(
                OPS.masked_conv_weight_grad(grad_, x_, mask_, case.kernel, *window), grad_weight
            ),
        }
    finally:
        OPS.set_conv_backend("automatic")


def failures(backend: str) -> list[str]:
    """What exceeds its tolerance, over all cases, masks and dtypes."""
    found = []
    for case in BACKENDS[backend]:
        for kind in MASKS:
            for dtype in (torch.float32, torch.float64):
                limit = 1e-12 if dtype == torch.float64 else TOLERANCE.get(backend, EXACT)
                for op, error in errors(backend, case, kind, dtype).items():
                    if not error <= limit:
                        found.append(f"{backend} {op} {case} mask {kind} {dtype}: {error:.1e}")
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    lines = [f"instruction set {OPS.cpu_isa()}"]
    bad = [line for backend in BACKENDS for line in failures(backend)]
    print("\n".join(lines + bad))
    sys.exit(1 if bad else 0)
