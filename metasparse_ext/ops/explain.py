"""Which implementation serves a masked convolution, and why not another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from metasparse_ext import _library
from metasparse_ext.ops.backends import get_backend
from metasparse_ext.ops.masked_conv import masked_conv2d

_DERIVATIVES = {
    "forward": "masked_conv",
    "input gradient": "masked_conv_input_grad",
    "weight gradient": "masked_conv_weight_grad",
}


class Candidate(NamedTuple):
    """An algorithm that was considered, and what became of it in words."""

    algorithm: str
    verdict: str


class Explanation(NamedTuple):
    """How one derivative of a convolution is computed.

    Attributes:
        op: ``"forward"``, ``"input gradient"`` or ``"weight gradient"``.
        candidates: What was considered, in order; the last one serves the call.
    """

    op: str
    candidates: tuple[Candidate, ...]

    @property
    def algorithm(self) -> str:
        """The algorithm that serves the call."""
        return self.candidates[-1].algorithm

    def __str__(self) -> str:
        *ruled_out, served = self.candidates
        lines = [f"{self.op}: {served.algorithm} ({served.verdict})"]
        lines += [f"  not {name}: {verdict}" for name, verdict in ruled_out]
        return "\n".join(lines)


class Explanations(tuple[Explanation, ...]):
    """One explanation a derivative; printed, a paragraph each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def explain(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Explanations:
    """Says which algorithm serves ``masked_conv2d`` with these operands on this machine, and why.

    Nothing is computed but the density of the mask.

    Args:
        x: (N, I, H, W) or (T, N, I, H, W).
        weight: (O, I, kh, kw) or (T, O, I, kh, kw).
        mask: (O, I), (T, O, I) or None.
        stride: As of :func:`metasparse_ext.masked_conv2d`.
        padding: Likewise.

    Returns:
        Three explanations: of the forward pass and of both gradients.

    Raises:
        ValueError: If x or weight has another number of dimensions.
        ValueError, TypeError: As :func:`metasparse_ext.masked_conv2d`, of what it does not take.
    """
    for name, tensor in {"x": x, "weight": weight}.items():
        if tensor.dim() not in (4, 5):
            raise ValueError(
                f"explain: expected {name} of 4 dimensions, or 5 with a leading task axis, "
                f"got shape {tuple(tensor.shape)}"
            )
    if _library.problem is not None:
        return _all("reference", _library.problem)
    _require_operands(x, weight, mask, stride, padding)
    if x.device.type == "cuda":
        return _on_cuda(x, weight, mask, _pair(stride), _pair(padding))
    if x.device.type != "cpu":
        return _all("library", f"there are no kernels for {x.device.type}")
    if x.dtype not in (torch.float32, torch.float64):
        return _all("library", f"the kernels compute in float32 and float64, not in {x.dtype}")
    sizes = _sizes(x, weight, _pair(stride), _pair(padding))
    density = 1.0 if mask is None else float(mask.count_nonzero()) / max(mask.numel(), 1)
    found = []
    for title, op in _DERIVATIVES.items():
        words = torch.ops.metasparse.explain_conv(op, sizes, density)
        pairs = zip(words[::2], words[1::2], strict=True)
        found.append(Explanation(title, tuple(Candidate(*pair) for pair in pairs)))
    return Explanations(found)


def _all(algorithm: str, verdict: str) -> Explanations:
    return Explanations(Explanation(op, (Candidate(algorithm, verdict),)) for op in _DERIVATIVES)


def _require_operands(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
) -> None:
    """Raises what the op itself would raise, which on the meta device computes nothing."""
    if x.shape[-3] != weight.shape[-3]:
        raise ValueError(
            f"explain: expected x with {weight.shape[-3]} channels like weight, got {x.shape[-3]}"
        )
    operands = (None if t is None else t.detach().to("meta") for t in (x, weight, mask))
    masked_conv2d(*operands, stride=stride, padding=padding)


def _sizes(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> list[int]:
    """The numbers of ConvShape (csrc/cpu/conv/algorithm.h), in its order."""
    tasks = max(x.shape[0] if x.dim() == 5 else 1, weight.shape[0] if weight.dim() == 5 else 1)
    samples, in_channels, height, width = x.shape[-4:]
    out_channels, _, *kernel = weight.shape[-4:]
    out = [
        (size + 2 * p - k) // s + 1
        for size, k, s, p in zip((height, width), kernel, stride, padding, strict=True)
    ]
    head = [tasks, samples, in_channels, out_channels, height, width]
    return [*head, *out, *kernel, *stride, *padding]


def _on_cuda(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Explanations:
    from metasparse_ext.ops import cuda, cuda_table

    def with_tasks(tensor: Tensor | None, rank: int) -> Tensor | None:
        return tensor[None] if tensor is not None and tensor.dim() == rank else tensor

    x, weight, mask = with_tasks(x, 4), with_tasks(weight, 4), with_tasks(mask, 2)
    tasks, samples, _, out_channels, _, _, *out = _sizes(x, weight, stride, padding)[:8]
    grad = x.new_empty(tasks, samples, out_channels, *out)
    arguments = {
        "masked_conv": (x, weight, mask, None, stride, padding),
        "masked_conv_input_grad": (grad, weight, mask, x.shape[3:], stride, padding),
        "masked_conv_weight_grad": (grad, x, mask, weight.shape[3:], stride, padding),
    }
    forced = get_backend("cuda")
    verdict = f"the table, {cuda_table.table().status}" if forced == "automatic" else "forced"
    return Explanations(
        Explanation(title, (Candidate(cuda.choose(op, arguments[op]).backend, verdict),))
        for title, op in _DERIVATIVES.items()
    )
