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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metasparse_ext import _library
from metasparse_ext.ops import cuda_features, cuda_table
from metasparse_ext.ops.backends import AUTOMATIC, get_backend
from metasparse_ext.ops.premultiplied import Multiply, premultiplied
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
    dense: Callable[..., Any] | None = None


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
    "masked_conv": Op("masked_conv", cuda_features.forward, _TILES),
    "masked_conv_input_grad": Op("masked_conv", cuda_features.input_grad, _TILES),
    "masked_conv_weight_grad": Op("masked_conv", cuda_features.weight_grad, _TILES),
    "masked_conv_mask_grad": Op("masked_conv", cuda_features.mask_grad, _TILES),
    "masked_conv_pair": Op("masked_conv", cuda_features.pair, _TILES),
    "masked_conv_input_grad_pair": Op("masked_conv", cuda_features.input_grad_pair, _TILES),
    "masked_conv_weight_grad_pair": Op("masked_conv", cuda_features.weight_grad_pair, _TILES),
    "masked_weight_pair": Op("masked_weight", cuda_features.weight, {}),
    "masked_weight_backward": Op("masked_weight", cuda_features.weight, {}),
    "depthwise_conv": Op(None, cuda_features.depthwise, {}),
    "depthwise_conv_input_grad": Op(None, cuda_features.depthwise, {}),
    "depthwise_conv_weight_grad": Op(None, cuda_features.depthwise, {}),
    "norm_act_pool": Op("norm_act_pool", lambda x, *_: cuda_features.norm(x), _NORM_BLOCKS),
    "norm_act_pool_backward": Op(
        "norm_act_pool", lambda grad, x, *_: cuda_features.norm(x), _NORM_BLOCKS
    ),
    "norm_act_pool_tangent": Op(
        "norm_act_pool", lambda x_dot, *_: cuda_features.norm(x_dot), _NORM_BLOCKS
    ),
    "norm_act_pool_double_backward": Op(
        "norm_act_pool", lambda x_dot, *_: cuda_features.norm(x_dot), _NORM_BLOCKS
    ),
    "score_gate": Op("score_gate", cuda_features.scores, {}),
    "score_gate_grad": Op("score_gate", cuda_features.scores, {}),
    "add_budget_gradient": Op(
        "score_gate", lambda gradient, scores, *_: cuda_features.scores(scores), {}
    ),
    "task_cross_entropy": Op("task_cross_entropy", cuda_features.loss, {}),
    "task_cross_entropy_backward": Op("task_cross_entropy", cuda_features.loss, {}),
    "task_cross_entropy_double_backward": Op("task_cross_entropy", cuda_features.loss, {}),
    "task_linear": Op(None, cuda_features.linear, {}),
    "task_linear_pair": Op(None, cuda_features.linear, {}),
    "task_linear_backward": Op("task_linear", lambda grad, x, w: cuda_features.linear(x, w), {}),
    "topk_mask": Op(
        "topk_mask", cuda_features.rows, {"block": (1024, 2048, 4096), "warps": (8, 16)}
    ),
    "cg_step": Op(
        "cg",
        cuda_features.rows,
        {"block": (512, 1024, 2048), "steps": (1, 2, 4, 8), "warps": (4, 8)},
        reference_cg.cg_step,
    ),
    "softmax_head": Op(
        None,
        lambda features, labels, center, *_: cuda_features.head(features, center),
        {},
        reference_head.softmax_head,
    ),
    "softmax_head_grad": Op(
        None,
        lambda grad, weight, features, *_: cuda_features.head(features, grad),
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
    # torch's stub lacks the attribute.
    return Card((found.major, found.minor), found.shared_memory_per_block_optin)  # type: ignore[attr-defined]


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


def _launcher(op: str) -> tuple[Callable[..., Any], Any]:
    module = importlib.import_module(f"metasparse_ext.triton.{OPS[op].module}")
    return getattr(module, op), module


def refusal(
    op: str, name: str, args: tuple[Any, ...], options: Mapping[str, int] | None = None
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
    op: str, args: tuple[Any, ...], card: Card | None, options: Mapping[str, int]
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


def _beyond_reach(args: tuple[Any, ...]) -> int | None:
    """The largest count of a call that 32-bit indices do not reach, if any."""
    images = [a for a in args if isinstance(a, Tensor) and a.dim() == 5]
    counts = [t[0, 0].numel() for t in images] + [t[0, :, 0].numel() for t in images]
    return max(counts) if max(counts) >= 2**31 - 2**16 else None


def candidates(op: str, args: tuple[Any, ...]) -> list[Choice]:
    """Every way to serve a call that is worth measuring: backends, Triton in several cuts."""
    grid = OPS[op].grid
    cuts = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    choices = [Choice("dense"), Choice("cuda"), *(Choice("triton", cut) for cut in cuts)]
    return [c for c in choices if refusal(op, c.backend, args, c.options) is None]


def choose(op: str, args: tuple[Any, ...]) -> Choice:
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


def run_choice(op: str, choice: Choice, args: tuple[Any, ...]) -> Any:
    """Runs a call on a given backend."""
    if choice.backend == "dense":
        return _run_dense(op, args, _multiplier(op, args))
    if choice.backend == "cuda":
        return getattr(torch.ops.metasparse_cuda, op)(*args)
    launch, module = _launcher(op)
    options: dict[str, Any] = dict(choice.options)
    if OPS[op].module == "masked_conv":
        options = {
            "tile": module.Tile(**options),
            "precision": cuda_features.triton_precision(args[0]),
        }
    with device_of(args[0]):
        return launch(*args, **options)


def _run_dense(op: str, args: tuple[Any, ...], multiply: Multiply | None = None) -> Any:
    dense = OPS[op].dense or getattr(torch.ops.metasparse_dense, op)
    return dense(*args) if multiply is None else premultiplied(op, dense, args, multiply)


def _multiplier(op: str, args: tuple[Any, ...]) -> Multiply | None:
    """A kernel for weights times masks beside PyTorch's convolutions, if there may be one."""
    empty = any(isinstance(a, Tensor) and a.numel() == 0 for a in args)
    if OPS[op].module != "masked_conv" or empty or get_backend("cuda") == "dense":
        return None
    if refusal("masked_weight_pair", "triton", args):
        return None
    from metasparse_ext.triton.masked_weight import masked_weight

    def multiply(weight: Tensor, mask: Tensor) -> Tensor:
        with device_of(weight):
            return masked_weight(weight, mask)

    return multiply


def run(op: str, *args: Any) -> Any:
    """What the CUDA key does: checks the arguments, chooses a backend and runs it."""
    check = getattr(torch.ops.metasparse_check, op, None)
    if check is not None:
        check(*args)
    return run_choice(op, choose(op, args), args)


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def _warn_elsewhere(device: str) -> None:
    warnings.warn(
        f"metasparse_ext has no kernels for {device}: PyTorch's own operators serve its ops there",
        RuntimeWarning,
        stacklevel=2,
    )


def run_elsewhere(op: str, *args: Any) -> Any:
    """What serves devices without kernels, ROCm's and MPS among them: PyTorch's own operators."""
    hip = torch.version.hip is not None and args[0].is_cuda
    _warn_elsewhere("ROCm" if hip else args[0].device.type)
    return _run_dense(op, args)


def _register() -> None:
    for op in OPS:
        if torch.version.cuda is not None:
            torch.library.impl(f"metasparse::{op}", "cuda", functools.partial(run, op))
        _LIBRARY.impl(op, functools.partial(run_elsewhere, op), "CompositeExplicitAutograd")


if _library.problem is None:
    _LIBRARY = torch.library.Library("metasparse", "IMPL")
    _register()
