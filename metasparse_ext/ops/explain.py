"""Which implementation serves a masked convolution, and why not another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metasparse_ext import _library
from metasparse_ext._arguments import require_like, require_pair
from metasparse_ext.ops._operands import is_cast, is_widened
from metasparse_ext.ops._tasks import with_tasks
from metasparse_ext.ops.backends import get_backend
from metasparse_ext.ops.masked_conv import masked_conv2d, padded

_DERIVATIVES = {
    "forward": "masked_conv",
    "input gradient": "masked_conv_input_grad",
    "weight gradient": "masked_conv_weight_grad",
}


_WINDOW = ("stride", "padding", "dilation", "groups")


class Candidate(NamedTuple):
    """An algorithm that was considered, and what became of it in words."""

    algorithm: str
    verdict: str


class Explanation(NamedTuple):
    """How one derivative of a convolution is computed.

    Attributes:
        op: ``"forward"``, ``"input gradient"`` or ``"weight gradient"``.
        candidates: What was considered, each algorithm once; the last one serves the call.
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
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Explanations:
    """Says which algorithm serves ``masked_conv2d`` with these operands on this machine, and why.

    Nothing is computed but the density of the mask.

    Args:
        x: (N, I, H, W) or (T, N, I, H, W), or one image (I, H, W).
        weight: (O, I, kh, kw) or (T, O, I, kh, kw).
        mask: (O, I), (T, O, I) or None.
        stride: As of :func:`metasparse_ext.masked_conv2d`.
        padding, dilation, groups: Likewise.

    Returns:
        Three explanations: of the forward pass and of both gradients.

    Raises:
        ValueError, TypeError: As :func:`metasparse_ext.masked_conv2d`, of what it does not take.
    """
    _require_operands(x, weight, mask, (stride, padding, dilation, groups))
    if _library.problem is not None:
        return _all("reference", _library.problem)
    if groups > 1 or require_pair("explain", "dilation", dilation) != (1, 1):
        return _of_groups(x, weight, dilation, groups)
    if x.dim() == 3:
        x = x[None]
    stride = require_pair("explain", "stride", stride, least=1)
    height, width = weight.shape[-2:]
    x, padding = padded(x, (height, width), stride, padding)
    if x.device.type == "cuda":
        return _on_cuda(x, weight, mask, stride, padding)
    if x.device.type != "cpu":
        return _all("library", f"there are no kernels for {x.device.type}")
    sizes = _sizes(x, weight, stride, padding)
    density = 1.0 if mask is None else float(mask.count_nonzero()) / max(mask.numel(), 1)
    note = f"in float32, rounded to {x.dtype}" if is_widened(x) else None
    found = []
    for title, op in _DERIVATIVES.items():
        words = torch.ops.metasparse.explain_conv(op, sizes, density)
        pairs = [Candidate(*pair) for pair in zip(words[::2], words[1::2], strict=True)]
        found.append(Explanation(title, _each_once(pairs, note)))
    return Explanations(found)


def _each_once(rows: list[Candidate], note: str | None) -> tuple[Candidate, ...]:
    """An algorithm may be in several rows of the table: one candidate, its verdicts joined."""
    *ruled_out, served = rows
    verdicts: dict[str, dict[str, None]] = {}
    for algorithm, verdict in ruled_out:
        verdicts.setdefault(algorithm, {})[verdict] = None
    earlier = "; ".join(verdicts.pop(served.algorithm, ()))
    why = [served.verdict, f"not by an earlier one: {earlier}" if earlier else None, note]
    joined = [Candidate(algorithm, _joined(words)) for algorithm, words in verdicts.items()]
    return (*joined, Candidate(served.algorithm, "; ".join(filter(None, why))))


def _joined(words: Iterable[str]) -> str:
    """Why an algorithm serves no call: of each of its rules, where it has several."""
    first, *others = words
    if not others:
        return first
    return f"of its {1 + len(others)} rules none applies: {'; '.join([first, *others])}"


def _all(algorithm: str, verdict: str) -> Explanations:
    return Explanations(Explanation(op, (Candidate(algorithm, verdict),)) for op in _DERIVATIVES)


def _of_groups(
    x: Tensor, weight: Tensor, dilation: int | tuple[int, int], groups: int
) -> Explanations:
    alone = x.shape[-3] == weight.shape[-4] == groups
    dilated = require_pair("explain", "dilation", dilation) != (1, 1)
    if alone and not dilated and x.device.type == "cpu":
        return _all("depthwise", "each channel sees itself alone; no kernel is skipped")
    return _all("library", "the kernels have neither groups of several channels nor dilation")


def _require_operands(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    window: tuple[Any, ...],
) -> None:
    """Raises what the op itself would raise, which on the meta device computes nothing."""
    operands = {"x": x, "weight": weight, "mask": mask}
    tensors = {name: t for name, t in operands.items() if isinstance(t, Tensor)}
    on_meta = {}
    for name, tensor in tensors.items():
        like = tensors.get("x", tensor)
        require_like("explain", name, tensor, "x", like, dtype=False)
        # There is no autocast on meta: what it would cast is cast here.
        dtype = torch.float32 if is_cast(tensor, like) else tensor.dtype
        on_meta[name] = tensor.detach().to("meta", dtype)
    checked: dict[str, Any] = {**operands, **on_meta}
    masked_conv2d(**checked, **dict(zip(_WINDOW, window, strict=True)))


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

    tasks, samples, _, out_channels, _, _, *out = _sizes(x, weight, stride, padding)[:8]
    x, weight, mask = with_tasks(x, 4, 1), with_tasks(weight, 4, 1), with_tasks(mask, 2, 1)
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
