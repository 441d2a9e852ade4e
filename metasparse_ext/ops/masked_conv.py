"""Masked 2-D convolution, batched over tasks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext._arguments import (
    FLOATS,
    NARROW_FLOATS,
    refuse,
    require,
    require_count,
    require_like,
    require_pair,
    require_tensor,
    shown,
)
from metasparse_ext.ops._operands import are_ready, is_cast, is_widened, without_autocast
from metasparse_ext.ops._register import register
from metasparse_ext.ops._shapes import after_window
from metasparse_ext.ops._tasks import with_tasks
from metasparse_ext.ops.depthwise_conv import depthwise_conv

_OP = "masked_conv2d"

# By name: what was passed, a tensor or None once it is checked, and its rank without tasks.
_Operands = dict[str, tuple[Any, int]]


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves with the kernels that a mask leaves, for many tasks in one call.

    Computes ``conv2d(x, weight * mask[..., None, None], bias, stride, padding, dilation, groups)``
    and skips every kernel (o, i) whose mask is zero: its weights are not read. Of grouped ones
    depthwise convolutions (a channel a group) are kernels of ours, which skip nothing; other groups
    and dilation are right, not faster: PyTorch's own convolution computes them, with zeros for the
    pruned kernels. Each argument may lead with a task axis T; one without it is shared by the
    tasks. Differentiable to any order, in reverse and
    forward mode, in ``x``, ``weight``, ``mask`` and ``bias``; the gradient of the mask is that of
    the product ``weight * mask`` and is dense, which is how a pruned kernel can come back.

    Args:
        x: (N, I, H, W) or (T, N, I, H, W), or one image (I, H, W); float32 or float64, or bfloat16
            or float16, which are computed in float32 and rounded once. Under autocast these mix
            with float32, and the result is float32.
        weight: (O, I, kh, kw) or (T, O, I, kh, kw), dtype of ``x``; with groups the second size
            is I / groups, as in ``conv2d``.
        mask: (O, I) or (T, O, I), likewise: zeros and ones in the dtype of ``x`` or bool; other
            reals multiply the kernels. None keeps every kernel.
        bias: (O,) or (T, O), added to every output channel, also to one without kernels.
        stride: Step of the window, one integer or (vertical, horizontal).
        padding: Zeros around the image, one integer or (vertical, horizontal); or "valid" for none
            or, with stride 1, "same" for a result of the image's size, as in ``conv2d``.
        dilation: Distance between the taps of a kernel, one integer or (vertical, horizontal).
        groups: Of input and output channels; those of one see nothing of the others.

    Returns:
        (T, N, O, Ho, Wo), or (N, O, Ho, Wo) when no argument has a task axis; without N for one
        image. Ho = floor((H + 2 * padding - dilation * (kh - 1) - 1) / stride) + 1.

    Raises:
        ValueError: A shape, device or option does not fit; the message names the argument.
        TypeError: Dtypes differ or are not supported, or an argument is not a dense tensor.

    The kernel-wise gate is that of MetaDOCK (Chavan et al., "Dynamic Kernel Selection for Improved
    Generalization and Memory Efficiency in Meta-learning", CVPR 2022).
    """
    args: _Operands = {"x": (x, 4), "weight": (weight, 4), "mask": (mask, 2), "bias": (bias, 1)}
    if weight is not None and are_ready(FLOATS, *args.values()):
        x, weight, mask, bias = _leading(args, x.shape[0])
        return _convolved(x, weight, mask, bias, stride, padding, dilation, groups)
    single = isinstance(x, Tensor) and x.dim() == 3
    if single:
        args["x"] = (x.unsqueeze(0), 4)
    tasks = _task_count(args)
    dtype, widened = x.dtype, is_widened(x)
    if widened or is_cast(x, x):
        args = {name: (_to(tensor, torch.float32), rank) for name, (tensor, rank) in args.items()}
    elif mask is not None and mask.dtype == torch.bool:
        args["mask"] = (mask.to(dtype), 2)
    args = {name: (_grown(tensor, rank), rank) for name, (tensor, rank) in args.items()}
    x, weight, mask, bias = _leading(args, tasks or 1)
    y = _convolved(x, weight, mask, bias, stride, padding, dilation, groups)
    if single:
        y = y.squeeze(1)
    if tasks is None:
        y = y.squeeze(0)
    elif tasks == 0:
        y = y[:0]
    return y.to(dtype) if widened else y


def _convolved(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
) -> Tensor:
    """The convolution of operands with a task axis, of one dtype; the options are checked here."""
    outs, _, height, width = weight.shape[1:]
    if 0 in (outs, height, width):
        refuse(_OP, "weight", "of kernels, with no empty axis but I", shown(weight))
    stride = require_pair(_OP, "stride", stride, least=1)
    dilation = require_pair(_OP, "dilation", dilation, least=1)
    require_count(_OP, "groups", groups, least=1)
    if x.shape[2] == weight.shape[2] == 0:
        x, weight, mask = _with_channels(x, weight, mask, groups)
    extent = reach((height, width), dilation)
    x, padding = padded(x, extent, stride, padding)
    _require_fit(extent, x, padding)
    if groups > 1 or dilation != (1, 1):
        return _grouped(x, weight, mask, bias, stride, padding, dilation, groups)
    run = torch.ops.metasparse.masked_conv if _library.loaded() else reference.masked_conv
    return run(x, weight, mask, bias, stride, padding)


def _with_channels(
    x: Tensor, weight: Tensor, mask: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One channel of zeros a group, where there is none: of no channels conv2d makes no outputs."""
    x = F.pad(x, (0, 0, 0, 0, 0, groups))
    weight = F.pad(weight, (0, 0, 0, 0, 0, 1))
    if mask is not None and mask.dim() == 3 and mask.shape[2] == 0:
        mask = F.pad(mask, (0, 1))
    return x, weight, mask


def _grouped(
    x: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """By our op where each channel sees itself alone; else by one of PyTorch's convolutions."""
    tasks, _, channels = x.shape[:3]
    outs, per_group = weight.shape[1:3]
    require(channels % groups == 0, _OP, "groups", f"a divisor of I = {channels}", groups)
    require(outs % groups == 0, _OP, "groups", f"a divisor of O = {outs}", groups)
    expected = f"of shape (*, {channels // groups}, kh, kw), I / groups"
    require(per_group == channels // groups, _OP, "weight", expected, tuple(weight.shape[1:]))
    if mask is not None:
        require(mask.shape == weight.shape[:3], _OP, "mask", "(O, I / groups)", tuple(mask.shape))
        weight = reference.masked_weight(weight, mask)
    if bias is not None:
        require(bias.shape == (tasks, outs), _OP, "bias", f"({outs},), O", tuple(bias.shape[1:]))
    with without_autocast(x):
        if channels == outs == groups and dilation == (1, 1):
            y = depthwise_conv(x, weight, stride, padding)
            return y if bias is None else y + bias[:, None, :, None, None]
        return _side_by_side(x, weight, bias, stride, padding, dilation, groups)


def _side_by_side(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """One convolution of PyTorch's, in which the tasks are groups, too."""
    tasks, outs = weight.shape[:2]
    images = reference.planar(x.transpose(0, 1).flatten(1, 2))
    kernels, flat_bias = reference.planar(weight.flatten(0, 1)), None
    if bias is not None:
        flat_bias = bias.flatten()
    y = F.conv2d(images, kernels, flat_bias, stride, padding, dilation, tasks * groups)
    return y.unflatten(1, (tasks, outs)).transpose(0, 1).contiguous()


def reach(kernel_size: Sequence[int], dilation: tuple[int, int]) -> tuple[int, int]:
    """The pixels that a dilated kernel extends over."""
    height, width = kernel_size
    return dilation[0] * (height - 1) + 1, dilation[1] * (width - 1) + 1


def _require_fit(extent: tuple[int, int], x: Tensor, padding: tuple[int, int]) -> None:
    """Refuses kernels that reach over more pixels than there are, padding included."""
    height, width = x.shape[-2:]
    if extent[0] > height + 2 * padding[0] or extent[1] > width + 2 * padding[1]:
        expected = f"of kernels that fit {height} x {width} pixels padded by {tuple(padding)}"
        refuse(_OP, "weight", expected, f"kernels over {extent[0]} x {extent[1]} pixels")


def _grown(tensor: Tensor | None, rank: int) -> Tensor | None:
    """Of no tasks, one of zeros is made, whose result is dropped: nothing has to know of none."""
    if tensor is None or tensor.dim() == rank or tensor.shape[0] > 0:
        return tensor
    return F.pad(tensor, (0, 0) * rank + (0, 1))


def _leading(args: _Operands, tasks: int) -> list[Any]:
    return [with_tasks(tensor, rank, tasks) for tensor, rank in args.values()]


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def padded(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: int | tuple[int, int] | str,
) -> tuple[Tensor, tuple[int, int]]:
    """The padding as two numbers; what is uneven ("same" for an even kernel) is added to x."""
    if not isinstance(padding, str):
        return x, require_pair(_OP, "padding", padding)
    if padding == "valid":
        return x, (0, 0)
    require(padding == "same", _OP, "padding", "integers, 'same' or 'valid'", padding)
    require(stride == (1, 1), _OP, "stride", "1 for padding 'same'", stride)
    height, width = (size - 1 for size in kernel_size)
    if height % 2 == 0 and width % 2 == 0:
        return x, (height // 2, width // 2)
    left, top = width // 2, height // 2
    return F.pad(x, (left, width - left, top, height - top)), (0, 0)


def _task_count(args: _Operands) -> int | None:
    """T, or None when no argument has a task axis; types, devices, ranks and T are checked."""
    tasks, leader = None, None
    for name, (tensor, rank) in args.items():
        if tensor is None and name in ("mask", "bias"):
            continue
        x = args["x"][0]
        tensor = require_tensor(_OP, name, tensor)
        if tensor.dim() not in (rank, rank + 1):
            image = ", or 3 for one image," if name == "x" else ""
            expected = f"of {rank} dimensions{image} or {rank + 1} with a leading task axis"
            refuse(_OP, name, expected, f"shape {tuple(tensor.shape)}")
        cast = is_cast(tensor, x)
        if name == "x" and not cast:
            require_tensor(_OP, name, tensor, dtypes=(*FLOATS, *NARROW_FLOATS))
        boolean = name == "mask" and tensor.dtype == torch.bool
        require_like(_OP, name, tensor, "x", x, dtype=not (cast or boolean))
        if tensor.dim() == rank:
            continue
        if tasks is not None and tensor.shape[0] != tasks:
            expected = f"for T = {tasks} tasks like {leader}"
            refuse(_OP, name, expected, f"shape {tuple(tensor.shape)}")
        tasks, leader = tensor.shape[0], name
    return tasks


def _outputs(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    out = after_window(x, weight, stride, padding)
    return x.new_empty(*x.shape[:2], weight.shape[1], *out)


def _inputs(grad: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    return grad.new_empty(*grad.shape[:2], weight.shape[2], *size)


def _kernels(grad: Tensor, x: Tensor, size: Sequence[int] = ()) -> Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[2], x.shape[2], *size)


def _gradients(x: Tensor, weight: Tensor, rest: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    of_input, _, of_bias = rest[:3]
    tasks, outs = weight.shape[:2]
    x_grad = x.new_empty(x.shape if of_input else (tasks, 0))
    return x_grad, x.new_empty(weight.shape), x.new_empty(tasks, outs if of_bias else 0)


# The shapes of results.
_FAKES: dict[str, Callable[..., object]] = {
    "masked_conv": lambda x, weight, _mask, _bias, *window: _outputs(x, weight, *window),
    "masked_conv_input_grad": lambda grad, weight, _mask, size, *_: _inputs(grad, weight, size),
    "masked_conv_weight_grad": lambda grad, x, _mask, size, *_: _kernels(grad, x, size),
    "masked_conv_mask_grad": lambda grad, x, *_: _kernels(grad, x),
    "masked_conv_pair": lambda x, weight, *rest: _outputs(x, weight, *rest[-2:]),
    "masked_conv_input_grad_pair": lambda grad, weight, *rest: _inputs(grad, weight, rest[-3]),
    "masked_conv_weight_grad_pair": lambda grad, x, *rest: _kernels(grad, x, rest[-3]),
    "masked_conv_backward": lambda grad, x, weight, _mask, *rest: _gradients(x, weight, rest),
    "masked_weight_pair": lambda weight, *_: weight.new_empty(weight.shape),
    "masked_weight_backward": lambda grad, *_: (
        grad.new_empty(grad.shape),
        grad.new_empty(grad.shape[:3]),
    ),
}


if _library.problem is None:
    register(_FAKES)
