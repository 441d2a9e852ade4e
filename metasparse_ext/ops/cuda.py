"""The CUDA key of every op: picks a backend for each call and runs it.

An op has up to three implementations of one name and argument list: ``metasparse_dense::op`` is
PyTorch's own operators (csrc/dense), ``metasparse_cuda::op`` is CUDA C++ (csrc/cuda; in builds
with CUDA), and a launcher in :mod:`metasparse_ext.triton`. The choice goes by the GPU, sizes,
dtype and precision, never by values: nothing here waits for the device. The C++ autograd Nodes lie
above this key, so whatever is chosen is differentiable to any order. On devices that are neither a
CPU nor an NVIDIA GPU, PyTorch's own operators serve.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metasparse_ext import _library
from metasparse_ext.ops import cuda_table
from metasparse_ext.ops.backends import AUTOMATIC, get_backend
from metasparse_ext.reference import cg as reference_cg
from metasparse_ext.reference import softmax_head as reference_head

_LAUNCHED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_GRID = 65535  # programs along the second and third axis of a launch


class Choice(NamedTuple):
    """A backend and what it is told."""

    backend: str
    options: Mapping[str, int] = {}


class Op(NamedTuple):
    """What is needed to choose a backend of one op.

    Attributes:
        module: Where in :mod:`metasparse_ext.triton` its launcher is, if it has one.
        features: Sizes, dtype and precision of a call, from its arguments.
        grid: Options of the launcher that are worth trying: name -> values.
        dense: PyTorch's own way, if not ``metasparse_dense::op``.
    """

    module: str | None
    features: Callable[..., dict[str, int | str]]
    grid: Mapping[str, Sequence[int]]
    dense: Callable | None = None


# ---- features ------------------------------------------------------------------------------------


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def precision(tensor: Tensor) -> str:
    """How convolutions multiply: float32 as "tf32" or "float32", by PyTorch's own switch."""
    if tensor.dtype != torch.float32:
        return _kind(tensor)
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "float32"


def triton_precision(tensor: Tensor) -> str:
    """What Triton's convolutions are told of :func:`precision`."""
    return "tf32x3" if precision(tensor) == "float32" else "tf32"


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


def _weight_features(weight, *_):
    return {"tasks": weight.shape[0], "size": weight[0].numel(), "dtype": _kind(weight)}


def _scores_features(*args):
    scores = args[2] if len(args) == 4 else args[-1]
    return _weight_features(scores)


def _loss_features(*args):
    *_, logits, _ = args
    tasks, samples, classes = logits.shape
    return {"tasks": tasks, "samples": samples, "classes": classes, "dtype": _kind(logits)}


def _linear_features(x, weight, *_):
    tasks, samples, size = x.shape
    sizes = {"tasks": tasks, "samples": samples, "size": size, "outputs": weight.shape[1]}
    return sizes | {"dtype": _kind(x)}


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
    "reduction": (16, 32, 64),
    "warps": (4, 8),
    "stages": (2, 3),
}
_NORM_BLOCKS = {"block": (512, 1024, 2048), "warps": (4, 8)}

OPS: dict[str, Op] = {
    "masked_conv": Op("masked_conv", _forward_features, _TILES),
    "masked_conv_input_grad": Op("masked_conv", _input_grad_features, _TILES),
    "masked_conv_weight_grad": Op("masked_conv", _weight_grad_features, _TILES),
    "masked_conv_mask_grad": Op("masked_conv", _mask_grad_features, _TILES),
    "masked_conv_pair": Op("masked_conv", _pair_features, _TILES),
    "masked_conv_input_grad_pair": Op("masked_conv", _input_grad_pair_features, _TILES),
    "masked_conv_weight_grad_pair": Op("masked_conv", _weight_grad_pair_features, _TILES),
    "masked_weight_pair": Op("masked_weight", _weight_features, {}),
    "masked_weight_backward": Op("masked_weight", _weight_features, {}),
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
    "score_gate": Op("score_gate", _scores_features, {}),
    "score_gate_grad": Op("score_gate", _scores_features, {}),
    "add_budget_gradient": Op(
        "score_gate", lambda gradient, scores, *_: _scores_features(scores), {}
    ),
    "task_cross_entropy": Op("task_cross_entropy", _loss_features, {}),
    "task_cross_entropy_backward": Op("task_cross_entropy", _loss_features, {}),
    "task_cross_entropy_double_backward": Op("task_cross_entropy", _loss_features, {}),
    "task_linear": Op(None, _linear_features, {}),
    "task_linear_pair": Op(None, _linear_features, {}),
    "task_linear_backward": Op("task_linear", lambda grad, x, w: _linear_features(x, w), {}),
    "topk_mask": Op("topk_mask", _rows_features, {"block": (1024, 2048, 4096), "warps": (8, 16)}),
    "cg_step": Op(
        "cg",
        _rows_features,
        {"block": (512, 1024, 2048), "steps": (1, 2, 4, 8), "warps": (4, 8)},
        reference_cg.cg_step,
    ),
    "softmax_head": Op(
        None,
        lambda features, labels, center, *_: _head_features(features, center),
        {},
        reference_head.softmax_head,
    ),
    "softmax_head_grad": Op(
        None,
        lambda grad, weight, features, *_: _head_features(features, grad),
        {},
        reference_head.softmax_head_grad,
    ),
}


# ---- backends ------------------------------------------------------------------------------------


class Card(NamedTuple):
    """What the choice of a backend has to know of a GPU.

    Attributes:
        capability: Compute capability, (major, minor).
        shared_bytes: Shared memory that a block may ask for.
    """

    capability: tuple[int, int]
    shared_bytes: int


#: Triton's own floor; older GPUs lack TF32, bfloat16 and asynchronous copies, too.
_OLDEST = (8, 0)


@functools.cache
def _card(index: int) -> Card:
    found = torch.cuda.get_device_properties(index)
    return Card((found.major, found.minor), found.shared_memory_per_block_optin)


def card_of(tensor: Tensor) -> Card | None:
    """The GPU that a tensor is on; None on other devices, where kernels are only emulated."""
    return _card(tensor.device.index) if tensor.is_cuda else None


@functools.cache
def problem(name: str, capability: tuple[int, int] | None = None) -> str | None:
    """Why a backend can serve no call at all, on a GPU of this capability if given, or None."""
    if name == "triton":
        return _triton_problem(capability)
    if name == "cuda":
        return _compiled_problem(capability)
    return None


def _triton_problem(capability: tuple[int, int] | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if capability is not None and capability < _OLDEST:
        return "the Triton kernels need a GPU of 8.0 or newer, this one is {}.{}".format(
            *capability
        )
    return None


def _compiled_problem(capability: tuple[int, int] | None) -> str | None:
    record = _library.build_record()
    if not hasattr(torch.ops.metasparse_cuda, "masked_conv"):
        return record.get("cuda_reason", "the compiled library is not in use")
    archs = record.get("cuda_archs", ())
    if capability is not None and not any(runs_on(arch, capability) for arch in archs):
        return (
            f"the CUDA C++ kernels were compiled for {', '.join(archs)}, "
            "and this GPU is {}.{}".format(*capability)
        )
    return None


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for an entry of TORCH_CUDA_ARCH_LIST, such as "9.0+PTX", runs on a GPU."""
    match = re.match(r"(\d+)\.(\d+)(\w?)", arch)
    if match is None:
        return True  # a name that torch knows
    major, minor = int(match[1]), int(match[2])
    if match[3] == "a":
        return (major, minor) == capability
    if arch.endswith("+PTX") and (major, minor) <= capability:
        return True
    return major == capability[0] and minor <= capability[1]


def _launcher(op: str) -> tuple[Callable, object]:
    module = importlib.import_module(f"metasparse_ext.triton.{OPS[op].module}")
    return getattr(module, op), module


def refusal(
    op: str, name: str, args: tuple, options: Mapping[str, int] | None = None
) -> str | None:
    """Why a backend cannot serve a call, told these options, or None."""
    if name == "dense":
        return None
    card = card_of(args[0])
    if found := problem(name, card and card.capability):
        return found
    if name == "cuda":
        ask = getattr(torch.ops.metasparse_cuda, f"{op}_refusal", None)
        return f"CUDA C++ has no {op}" if ask is None else ask(*args) or None
    return _launch_refusal(op, args, card, options or {})


def _launch_refusal(
    op: str, args: tuple, card: Card | None, options: Mapping[str, int]
) -> str | None:
    """Why no launch of a Triton kernel can serve a call, or None."""
    module = OPS[op].module
    if module is None:
        return f"Triton has no {op}"
    features = OPS[op].features(*args)
    if any(size == 0 for size in features.values()):
        return "a tensor is empty"
    known = _LAUNCHED[:2] if module in ("topk_mask", "cg") else _LAUNCHED
    if args[0].dtype not in known:
        return f"the kernels take {', '.join(map(str, known))}, got {args[0].dtype}"
    if args[0].shape[0] > _GRID:
        return f"the kernels take up to {_GRID} tasks, got {args[0].shape[0]}"
    if module != "masked_conv":
        return None
    if largest := _beyond_reach(args):
        return f"the kernels count up to 2^31 pixels, and numbers of a sample, got {largest}"
    family = _launcher(op)[1]
    wanted = family.shared_bytes(op, args, family.Tile(**options))
    if card is not None and wanted > card.shared_bytes:
        return f"a block needs {wanted} bytes of shared memory, and the GPU has {card.shared_bytes}"
    return None


def _beyond_reach(args: tuple) -> int | None:
    """The largest count of a call that 32-bit indices do not reach, if any."""
    images = [a for a in args if isinstance(a, Tensor) and a.dim() == 5]
    counts = [t[0, 0].numel() for t in images] + [t[0, :, 0].numel() for t in images]
    return max(counts) if max(counts) >= 2**31 - 2**16 else None


def candidates(op: str, args: tuple) -> list[Choice]:
    """Every way to serve a call that is worth measuring: backends, Triton in several cuts."""
    grid = OPS[op].grid
    cuts = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    choices = [Choice("dense"), Choice("cuda"), *(Choice("triton", cut) for cut in cuts)]
    return [c for c in choices if refusal(op, c.backend, args, c.options) is None]


def choose(op: str, args: tuple) -> Choice:
    """The backend for a call: the one that is forced where it can serve it, or else by the table.

    Raises:
        ValueError: The forced backend is not there at all.
    """
    features = OPS[op].features(*args)
    if any(size == 0 for size in features.values()):
        return Choice("dense")
    forced, card = get_backend("cuda"), card_of(args[0])
    if absent := problem(forced, card and card.capability):
        raise ValueError(f"{op}: expected the forced backend {forced!r} to be there, got: {absent}")
    if forced != AUTOMATIC and refusal(op, forced, args) is not None:
        forced = AUTOMATIC
    for row in cuda_table.rows_for(op, tuple(features.items())):
        if forced not in (AUTOMATIC, row.backend):
            continue
        if refusal(op, row.backend, args, row.options) is None:
            return Choice(row.backend, row.options)
    return Choice("dense" if forced == AUTOMATIC else forced)


def run_choice(op: str, choice: Choice, args: tuple):
    """Runs a call on a given backend."""
    if choice.backend == "dense":
        dense = OPS[op].dense or getattr(torch.ops.metasparse_dense, op)
        return dense(*args)
    if choice.backend == "cuda":
        return getattr(torch.ops.metasparse_cuda, op)(*args)
    launch, module = _launcher(op)
    options = dict(choice.options)
    if OPS[op].module == "masked_conv":
        options = {"tile": module.Tile(**options), "precision": triton_precision(args[0])}
    with device_of(args[0]):
        return launch(*args, **options)


def run(op: str, *args):
    """What the CUDA key does: checks the arguments, chooses a backend and runs it."""
    check = getattr(torch.ops.metasparse_check, op, None)
    if check is not None:
        check(*args)
    return run_choice(op, choose(op, args), args)


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def _warn_elsewhere(device: str) -> None:
    warnings.warn(
        f"metasparse_ext has no kernels for {device}: PyTorch's own operators serve its ops there",
        RuntimeWarning,
        stacklevel=2,
    )


def run_elsewhere(op: str, *args):
    """What serves devices without kernels, ROCm's and MPS among them: PyTorch's own operators."""
    hip = torch.version.hip is not None and args[0].is_cuda
    _warn_elsewhere("ROCm" if hip else args[0].device.type)
    return run_choice(op, Choice("dense"), args)


def _register() -> None:
    for op in OPS:
        if torch.version.cuda is not None:
            torch.library.impl(f"metasparse::{op}", "cuda", functools.partial(run, op))
        _LIBRARY.impl(op, functools.partial(run_elsewhere, op), "CompositeExplicitAutograd")


if _library.problem is None:
    _LIBRARY = torch.library.Library("metasparse", "IMPL")
    _register()
