"""What the choice of a CUDA backend goes by: sizes, dtype and precision of a call."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

#: Sizes by their names, and words for a dtype or the precision of products.
Features = dict[str, int | str]


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def precision(tensor: Tensor) -> str:
    """How convolutions multiply: float32 as "tf32" or "float32", by PyTorch's own switch."""
    if tensor.dtype != torch.float32:
        return _kind(tensor)
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "float32"  # type: ignore[attr-defined]


def triton_precision(tensor: Tensor) -> str:
    """What Triton's convolutions are told of :func:`precision`."""
    return "tf32x3" if precision(tensor) == "float32" else "tf32"


def _product(
    tensor: Tensor, rows: int, columns: int, depth: int, weights: Sequence[Tensor | None]
) -> Features:
    """Of an implicit matrix product: its sizes over all tasks, and how many there are.

    ``calls`` is the number of library calls it takes: one where the tasks share their weights.
    """
    tasks = tensor.shape[0]
    shared = all(w is None or w.shape[0] == 1 or w.stride(0) == 0 for w in weights)
    return {
        "rows": rows,
        "columns": columns,
        "depth": depth,
        "calls": 1 if shared else tasks,
        "dtype": _kind(tensor),
        "precision": precision(tensor),
    }


def forward(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Features:
    sizes = zip(x.shape[3:], weight.shape[3:], stride, padding, strict=True)
    height, width = ((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
    columns = x.shape[0] * x.shape[1] * height * width
    return _product(x, weight.shape[1], columns, prod(weight.shape[2:]), (weight, mask, bias))


def input_grad(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: object = None,
) -> Features:
    columns = grad.shape[0] * grad.shape[1] * input_size[0] * input_size[1]
    depth = weight.shape[1] * prod(weight.shape[3:]) // (stride[0] * stride[1])
    return _product(grad, weight.shape[2], columns, depth, (weight, mask))


def weight_grad(
    grad: Tensor, x: Tensor, mask: Tensor | None, kernel_size: Sequence[int], *_: object
) -> Features:
    columns = x.shape[0] * x.shape[2] * kernel_size[0] * kernel_size[1]
    depth = grad.shape[1] * prod(grad.shape[3:])
    return _product(grad, grad.shape[2], columns, depth, (grad,))


def mask_grad(grad: Tensor, x: Tensor, weight: Tensor, *_: object) -> Features:
    return weight_grad(grad, x, None, weight.shape[3:])


def pair(x: Tensor, weight: Tensor, mask: Tensor | None, *rest: Any) -> Features:
    """Of two convolutions: ``rest`` is the other's operands, the bias, stride and padding."""
    return _twice_as_deep(forward(x, weight, mask, *rest[-3:]))


def input_grad_pair(grad: Tensor, weight: Tensor, mask: Tensor | None, *rest: Any) -> Features:
    return _twice_as_deep(input_grad(grad, weight, mask, *rest[-3:]))


def weight_grad_pair(grad: Tensor, x: Tensor, *rest: Any) -> Features:
    return _twice_as_deep(weight_grad(grad, x, *rest[2:4]))


def _twice_as_deep(features: Features) -> Features:
    return features | {"depth": 2 * int(features["depth"])}


def depthwise(images: Tensor, *_: object) -> Features:
    """Of images, or a gradient there: (T, N, C, H, W)."""
    tasks, samples, channels, *image = images.shape
    sizes = {"tasks": tasks, "samples": samples, "channels": channels, "pixels": prod(image)}
    return sizes | {"dtype": _kind(images), "precision": precision(images)}


def norm(x: Tensor) -> Features:
    return {
        "channels": x.shape[0] * x.shape[2],
        "elements": x.shape[1] * x.shape[3] * x.shape[4],
        "dtype": _kind(x),
    }


def weight(weight: Tensor, *_: object) -> Features:
    return {"tasks": weight.shape[0], "size": prod(weight.shape[1:]), "dtype": _kind(weight)}


def scores(*args: Tensor) -> Features:
    scores = args[2] if len(args) == 4 else args[-1]
    return weight(scores)


def loss(*args: Tensor) -> Features:
    *_, logits, _ = args
    tasks, samples, classes = logits.shape
    return {"tasks": tasks, "samples": samples, "classes": classes, "dtype": _kind(logits)}


def linear(x: Tensor, weight: Tensor, *_: object) -> Features:
    tasks, samples, size = x.shape
    sizes = {"tasks": tasks, "samples": samples, "size": size, "outputs": weight.shape[1]}
    return sizes | {"dtype": _kind(x)}


def rows(rows: Tensor, *_: object) -> Features:
    return {"rows": rows.shape[0], "size": rows.shape[1], "dtype": _kind(rows)}


def head(features: Tensor, center: Tensor) -> Features:
    return {
        "tasks": features.shape[0],
        "samples": features.shape[1],
        "size": features.shape[2],
        "classes": center.shape[1],
        "dtype": _kind(features),
    }
