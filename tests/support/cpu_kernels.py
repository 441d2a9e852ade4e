"""Cases of the masked convolution on the CPU, and their errors against float64 convolutions."""

from collections.abc import Iterator
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
ALGORITHMS = {
    "direct": STRIDE1 + STRIDE2 + GENERAL,
    "winograd2": STRIDE1,
    "winograd3": STRIDE1,
    "winograd4": STRIDE1,
    "winograd5": STRIDE1,
    "polyphase2": STRIDE2,
    "polyphase3": STRIDE2,
    "few_channels": STRIDE1 + STRIDE2 + GENERAL,
    "automatic": STRIDE1 + STRIDE2 + GENERAL,
    "precise": STRIDE1 + STRIDE2,
}
# Largest error over the largest element, float32: schemes as exact as a direct sum, and the others.
EXACT, BOUND = 2e-6, 1e-5
TOLERANCE = dict.fromkeys(("winograd3", "winograd4", "winograd5", "automatic"), BOUND)
# Weights that a mask scales towards zero leave smaller sums to compare with: forced on them, F(4)
# and F(5) may miss the bound that the default, which picks its scheme, keeps there too.
FAINT_TOLERANCE = TOLERANCE | {"winograd4": 2e-5, "winograd5": 2e-5}
MASKS = ("none", "half", "weighted", "faint", "shared", "empty")


def make_mask(kind: str, case: Case) -> Tensor | None:
    shape = (case.tasks, case.outputs, case.inputs)
    active = (torch.rand(shape) < 0.5).double()
    if kind == "shared":
        return active[:1].expand(shape)
    return {
        "none": None,
        "half": active,
        "weighted": active * (0.5 + torch.rand(shape, dtype=torch.float64)),
        "faint": active * torch.rand(shape, dtype=torch.float64),
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


def errors(algorithm: str, case: Case, mask_kind: str, dtype: torch.dtype) -> dict[str, float]:
    """The largest relative error of each operation that the algorithm serves."""
    x = torch.randn(case.tasks, case.samples, case.inputs, case.height, case.width).double()
    weight = torch.randn(case.tasks, case.outputs, case.inputs, *case.kernel).double()
    bias = torch.randn(case.tasks, case.outputs).double()
    mask = make_mask(mask_kind, case)
    y, gradients, grad = values_and_gradients(x, weight, mask, bias, case)
    # The second term of the sums of two: the same operands in another order, all kernels active.
    x2, weight2, grad2 = x.flip(1), weight.flip(1), grad.flip(1)
    y2, gradients2, _ = values_and_gradients(x2, weight2, None, bias * 0, case, grad2)
    masked2 = gradients2[1] if mask is None else gradients2[1] * mask[..., None, None]
    expected = {
        "forward": y,
        "input_grad": gradients[0],
        "weight_grad": gradients[1],
        "pair": y + y2,
        "input_grad_pair": gradients[0] + gradients2[0],
        "weight_grad_pair": gradients[1] + masked2,
    }

    cast = [t if t is None else t.to(dtype) for t in (x, weight, bias, mask, grad, x2, weight2)]
    x_, weight_, bias_, mask_, grad_, x2_, weight2_ = cast
    grad2_ = grad2.to(dtype)
    if mask is not None:
        weight_ = weight_.masked_fill((mask == 0)[..., None, None], float("nan"))
        mask_ = mask_[:1].expand(mask.shape) if mask_kind == "shared" else mask_
    window = (case.stride, case.padding)
    image = (case.height, case.width)
    first, second = (grad_, weight_, mask_), (grad2_, weight2_, None)
    OPS.set_conv_backend(algorithm)
    try:
        got = {
            "forward": OPS.masked_conv(x_, weight_, mask_, bias_, *window),
            "weight_grad": OPS.masked_conv_weight_grad(grad_, x_, mask_, case.kernel, *window),
            "pair": OPS.masked_conv_pair(x_, weight_, mask_, x2_, weight2_, None, bias_, *window),
            "weight_grad_pair": OPS.masked_conv_weight_grad_pair(
                grad_, x_, grad2_, x2_, mask_, case.kernel, *window
            ),
        }
        if algorithm != "few_channels":
            got |= {
                "input_grad": OPS.masked_conv_input_grad(*first, image, *window),
                "input_grad_pair": OPS.masked_conv_input_grad_pair(*first, *second, image, *window),
            }
    finally:
        OPS.set_conv_backend("automatic")
    return {name: relative_error(got[name], expected[name]) for name in got}


def values_and_gradients(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor,
    case: Case,
    grad: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """The convolution, its gradients in x and weight, and the output's gradient they are for."""
    leaves = (x.clone().requires_grad_(), weight.clone().requires_grad_())
    y = defined(*leaves, mask, bias, case)
    grad = torch.randn(y.shape).double() if grad is None else grad
    return y.detach(), torch.autograd.grad(y, leaves, grad), grad


class Check(NamedTuple):
    """One case of an algorithm under one kind of mask, and the error that it may have."""

    algorithm: str
    case: Case
    mask: str
    dtype: torch.dtype
    limit: float

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.algorithm} {self.case} mask {self.mask} {dtype}"


def checks() -> Iterator[Check]:
    """All algorithms, cases, masks and dtypes."""
    for algorithm, cases in ALGORITHMS.items():
        for case in cases:
            for mask in MASKS:
                tolerance = FAINT_TOLERANCE if mask == "faint" else TOLERANCE
                limit = tolerance.get(algorithm, EXACT)
                yield Check(algorithm, case, mask, torch.float32, limit)
                yield Check(algorithm, case, mask, torch.float64, 1e-12)
