"""The CUDA key of every op: picks a backend for each call and runs it.

An op has up to four implementations of one name and argument list: ``metasparse_dense::op`` is
PyTorch's own operators (csrc/dense), ``metasparse_cuda::op`` is CUDA C++ (csrc/cuda; in builds
with CUDA), ``metasparse_winograd::op`` a convolution by Winograd's filtering there, and a launcher
in :mod:`metasparse_ext.triton`. The choice goes by sizes, dtype and
precision, never by values: nothing here waits for the device. The C++ autograd Nodes lie above this
key, so whatever is chosen is differentiable to any order.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metasparse_ext import _library
from metasparse_ext.ops import cuda_table
from metasparse_ext.ops.backends import AUTOMATIC, get_backend
from metasparse_ext.reference import cg as reference_cg
from metasparse_ext.reference import softmax_head as reference_head

# The backends in CUDA C++, by the names of their ops.
_COMPILED = {"cuda": torch.ops.metasparse_cuda, "winograd": torch.ops.metasparse_winograd}
_LAUNCHED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Choice(NamedTuple):
    """A backend and what it is told."""

    backend: str
    options: Mapping[str, int | bool] = {}


class Op(NamedTuple):
    """What is needed to choose a backend of one op.

    Attributes:
        module: Where in :mod:`metasparse_ext.triton` its launcher is.
        features: Sizes, dtype and precision of a call, from its arguments.
        grid: Options of the launcher that are worth trying: name -> values.
        dense: PyTorch's own way, if not ``metasparse_dense::op``.
    """

    module: str
    features: Callable[..., dict[str, int | str]]
    grid: Mapping[str, Sequence[int | bool]]
    dense: Callable | None = None


# ---- features ------------------------------------------------------------------------------------


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def precision(tensor: Tensor) -> str:
    """How convolutions multiply: float32 as "tf32" or "float32", by PyTorch's own switch."""
    if tensor.dtype != torch.float32:
        return _kind(tensor)
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "float32"


def _product(
    tensor: Tensor, rows: int, columns: int, depth: int, weights: Sequence[Tensor | None]
) -> dict[str, int | str]:
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


def _forward_features(x, weight, mask, bias, stride, padding):
    sizes = zip(x.shape[3:], weight.shape[3:], stride, padding, strict=True)
    height, width = ((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
    columns = x.shape[0] * x.shape[1] * height * width
    return _product(x, weight.shape[1], columns, weight[0, 0].numel(), (weight, mask, bias))


def _input_grad_features(grad, weight, mask, input_size, stride, padding):
    columns = grad.shape[0] * grad.shape[1] * input_size[0] * input_size[1]
    depth = weight[0, :, 0].numel() // (stride[0] * stride[1])
    return _product(grad, weight.shape[2], columns, depth, (weight, mask))


def _weight_grad_features(grad, x, mask, kernel_size, stride, padding):
    columns = x.shape[0] * x.shape[2] * kernel_size[0] * kernel_size[1]
    depth = grad[0, :, 0].numel()
    return _product(grad, grad.shape[2], columns, depth, (grad,))


def _mask_grad_features(grad, x, weight, stride, padding):
    return _weight_grad_features(grad, x, None, weight.shape[3:], stride, padding)


def _pair_features(x1, weight1, mask1, x2, weight2, mask2, bias, stride, padding):
    features = _forward_features(x1, weight1, mask1, bias, stride, padding)
    return features | {"depth": 2 * features["depth"]}


def _input_grad_pair_features(
    grad1, weight1, mask1, grad2, weight2, mask2, input_size, stride, padding
):
    features = _input_grad_features(grad1, weight1, mask1, input_size, stride, padding)
    return features | {"depth": 2 * features["depth"]}


def _weight_grad_pair_features(grad1, x1, grad2, x2, mask, kernel_size, stride, padding):
    features = _weight_grad_features(grad1, x1, mask, kernel_size, stride, padding)
    return features | {"depth": 2 * features["depth"]}


def _norm_features(x: Tensor) -> dict[str, int | str]:
    return {
        "channels": x.shape[0] * x.shape[2],
        "elements": x.shape[1] * x.shape[3] * x.shape[4],
        "dtype": _kind(x),
    }


def _rows_features(rows, *_):
    return {"rows": rows.shape[0], "size": rows.shape[1], "dtype": _kind(rows)}


def _head_features(features: Tensor, center: Tensor) -> dict[str, int | str]:
    return {
        "tasks": features.shape[0],
        "samples": features.shape[1],
        "size": features.shape[2],
        "classes": center.shape[1],
        "dtype": _kind(features),
    }


# ---- the ops -------------------------------------------------------------------------------------

_TILES = {
    "rows": (32, 64, 128),
    "pixels": (32, 64, 128),
    "reduction": (32, 64),
    "warps": (4, 8),
    "stages": (3, 4),
}
_SKIPPING_TILES = {**_TILES, "skip": (False, True)}
_NORM_BLOCKS = {"block": (512, 1024, 2048), "warps": (4, 8)}

OPS: dict[str, Op] = {
    "masked_conv": Op("masked_conv", _forward_features, _SKIPPING_TILES),
    "masked_conv_input_grad": Op("masked_conv", _input_grad_features, _SKIPPING_TILES),
    "masked_conv_weight_grad": Op("masked_conv", _weight_grad_features, _TILES),
    "masked_conv_mask_grad": Op("masked_conv", _mask_grad_features, _TILES),
    "masked_conv_pair": Op("masked_conv", _pair_features, _SKIPPING_TILES),
    "masked_conv_input_grad_pair": Op("masked_conv", _input_grad_pair_features, _SKIPPING_TILES),
    "masked_conv_weight_grad_pair": Op("masked_conv", _weight_grad_pair_features, _TILES),
    "norm_act_pool": Op("norm_act_pool", lambda x, *_: _norm_features(x), _NORM_BLOCKS),
    "norm_act_pool_backward": Op(
        "norm_act_pool", lambda grad, x, *_: _norm_features(x), _NORM_BLOCKS
    ),
    "norm_act_pool_tangent": Op(
        "norm_act_pool", lambda x_dot, *_: _norm_features(x_dot), _NORM_BLOCKS
    ),
    "norm_act_pool_double_backward": Op(
        "norm_act_pool", lambda x_dot, *_: _norm_features(x_dot), _NORM_BLOCKS
    ),
    "topk_mask": Op("topk_mask", _rows_features, {"block": (1024, 2048, 4096), "warps": (8, 16)}),
    "cg_step": Op(
        "cg",
        _rows_features,
        {"block": (512, 1024, 2048), "steps": (1, 2, 4, 8), "warps": (4, 8)},
        reference_cg.cg_step,
    ),
    "softmax_head": Op(
        "softmax_head",
        lambda features, labels, center, *_: _head_features(features, center),
        {"columns": (16, 32, 64), "warps": (4, 8)},
        reference_head.softmax_head,
    ),
    "softmax_head_grad": Op(
        "softmax_head",
        lambda grad, weight, features, *_: _head_features(features, grad),
        {"columns": (16, 32, 64), "warps": (4, 8)},
        reference_head.softmax_head_grad,
    ),
}


# ---- backends ------------------------------------------------------------------------------------


@functools.cache
def problem(name: str) -> str | None:
    """Why a backend can serve no call at all, or None."""
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if name in _COMPILED and not hasattr(_COMPILED[name], "masked_conv"):
        return _library.build_record().get("cuda_reason", "the compiled library is not in use")
    return None


def _launcher(op: str) -> tuple[Callable, object]:
    module = importlib.import_module(f"metasparse_ext.triton.{OPS[op].module}")
    return getattr(module, op), module


def supported(op: str, name: str, args: tuple) -> bool:
    """Whether a backend can serve a call."""
    if name == "dense":
        return True
    if name in _COMPILED:
        takes = getattr(_COMPILED[name], f"{op}_supported", None)
        return takes is not None and takes(*args)
    if problem("triton") is not None:
        return False
    tensors = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    features = OPS[op].features(*args)
    if any(size == 0 for size in features.values()) or tensors[0].dtype not in _LAUNCHED:
        return False
    exact = OPS[op].module in ("topk_mask", "cg", "softmax_head")
    if exact and features["dtype"] not in ("float32", "float64"):
        return False
    if OPS[op].module == "softmax_head":
        module = _launcher(op)[1]
        return (
            features["samples"] <= module.MAX_SAMPLES and features["classes"] <= module.MAX_CLASSES
        )
    return True


def candidates(op: str, args: tuple) -> list[Choice]:
    """Every way to serve a call that is worth measuring: backends, Triton in several cuts."""
    choices = [Choice(name) for name in ("dense", *_COMPILED) if supported(op, name, args)]
    if supported(op, "triton", args):
        grid = OPS[op].grid
        choices += [
            Choice("triton", dict(zip(grid, values, strict=True)))
            for values in itertools.product(*grid.values())
        ]
    return choices


def choose(op: str, args: tuple) -> Choice:
    """The backend for a call: the one that is forced where it can serve it, or else by the table.

    Raises:
        ValueError: The forced backend is not there at all.
    """
    features = OPS[op].features(*args)
    if any(size == 0 for size in features.values()):
        return Choice("dense")
    forced = get_backend("cuda")
    if problem(forced) is not None:
        raise ValueError(
            f"{op}: expected the forced backend {forced!r} to be there, got: {problem(forced)}"
        )
    if forced != AUTOMATIC and not supported(op, forced, args):
        forced = AUTOMATIC
    for row in cuda_table.rows_for(op, tuple(features.items())):
        if forced in (AUTOMATIC, row.backend) and supported(op, row.backend, args):
            return Choice(row.backend, row.options)
    return Choice("dense" if forced == AUTOMATIC else forced)


def run_choice(op: str, choice: Choice, args: tuple):
    """Runs a call on a given backend."""
    if choice.backend == "dense":
        dense = OPS[op].dense or getattr(torch.ops.metasparse_dense, op)
        return dense(*args)
    if choice.backend in _COMPILED:
        return getattr(_COMPILED[choice.backend], op)(*args)
    launch, module = _launcher(op)
    options = dict(choice.options)
    if OPS[op].module == "masked_conv":
        wanted = precision(args[0])
        options = {
            "tile": module.Tile(**options),
            "precision": "tf32x3" if wanted == "float32" else "tf32",
        }
    with _device_of(args[0]):
        return launch(*args, **options)


def run(op: str, *args):
    """What the CUDA key does: checks the arguments, chooses a backend and runs it."""
    check = getattr(torch.ops.metasparse_check, op, None)
    if check is not None:
        check(*args)
    return run_choice(op, choose(op, args), args)


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()


def _register() -> None:
    for op in OPS:
        torch.library.impl(f"metasparse::{op}", "cuda", functools.partial(run, op))


if _library.problem is None and torch.version.cuda is not None:
    _register()
