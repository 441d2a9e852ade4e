"""What a model may count on when it is run for several tasks at once: to see one task alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor
from torch.overrides import TorchFunctionMode

from metasparse_ext._arguments import FLOATS
from metasparse_ext.algorithms.norm_then_relu import NormThenReLU
from metasparse_ext.ops._operands import autocast_is_on
from metasparse_ext.ops.masked_conv import masked_conv2d
from metasparse_ext.ops.norm_act_pool import norm_act_pool

# torch's stubs have attributes for these.
_REQUIRES_GRAD = vars(torch._C.TensorBase)["requires_grad"].__get__
_GRAD_FN = vars(torch._C.TensorBase)["grad_fn"].__get__


class AsOneTask(TorchFunctionMode):
    """Where ``torch.func.vmap``, or a flat buffer of parameters, is no good stand-in for a task.

    What would give other numbers:

    - The rule of vmap for an embedding knows the padding of the first task alone.
    - Gradients of embeddings are dense: a flat buffer has no sparse ones.
    - Inside a vmap tensors have neither requires_grad nor grad_fn, and a hook that asks for them
      would be left out. With those of the graph outside it meets vmap's refusal, and the model
      runs task by task.

    What would be slow: the rules of vmap for a convolution and a batch norm lay the channels of
    all tasks side by side, in a copy, and multiply and add the parameters of a norm one after the
    other. Convolutions on a CPU, and norms by the statistics of a batch, are our ops on all tasks.

    Attributes:
        relu: Whether the next norm does a ReLU besides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relu = NormThenReLU()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if func is torch.embedding:
            return _looked_up(*args, **kwargs)
        if func is F.embedding_bag:
            args, kwargs = _of_dense_bag(args, kwargs)
        if func is F.conv2d:
            return _conv2d(*args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(self.relu, *args, **kwargs)
        if func == _REQUIRES_GRAD:
            return _unmapped(args[0]).requires_grad
        if func == _GRAD_FN:
            return _unmapped(args[0]).grad_fn
        return func(*args, **kwargs)


def _embedding(
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``F.embedding``; rows of padding get no gradient, and none is sparse."""
    rows = F.embedding(indices, weight, None, max_norm, norm_type, scale_grad_by_freq)
    if padding_idx is None:
        return rows
    padding = (indices == padding_idx % len(weight)).unsqueeze(-1)
    return torch.where(padding, rows.detach(), rows)


def _looked_up(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``torch.embedding``, to which no padding is -1."""
    padding = None if padding_idx < 0 else padding_idx
    return _embedding(indices, weight, padding, scale_grad_by_freq=scale_grad_by_freq)


def _of_dense_bag(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Arguments of ``F.embedding_bag``, whose eighth is ``sparse``, for a dense gradient."""
    if len(args) > 7:
        return (*args[:7], False, *args[8:]), kwargs
    return args, {**kwargs, "sparse": False}


def _batch_norm(
    relu: NormThenReLU,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``; by a batch of images' statistics, all tasks at once, with its ReLU."""
    tracked = running_mean is not None or running_var is not None or not training
    # A batch of one number a channel PyTorch refuses.
    several = input.numel() > input.shape[1] if input.dim() == 4 else False
    if tracked or not (is_batchedtensor(input) and several and _is_ready(input)):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    activation: Literal["relu", "none"] = "relu" if relu.claim() else "none"
    return norm_act_pool(input, weight, bias, eps=eps, activation=activation)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``, all tasks at once; what our op does not take is PyTorch's, or its error."""
    stock: Callable[..., Tensor] = F.conv2d
    rest = (_plain(stride), _plain(padding), _plain(dilation), groups)
    mapped = is_batchedtensor(input) or is_batchedtensor(weight)
    if mapped and input.is_cpu and _is_ready(input):
        ranks = (input.dim(), weight.dim(), 1 if bias is None else bias.dim())
        if ranks == (4, 4, 1) and input.numel() > 0:
            with suppress(TypeError, ValueError):
                return masked_conv2d(input, weight, None, bias, *rest)
        # The rule of vmap takes more, and speaks of other sizes.
        none = None if bias is None else torch.zeros(bias.shape)
        stock(torch.zeros(input.shape), torch.zeros(weight.shape), none, *rest)
    return stock(input, weight, bias, *rest)


def _plain(option: Any) -> Any:
    """A stride, a padding or a dilation, of which PyTorch reads tensors and sequences of one."""
    if isinstance(option, Tensor):
        return int(option)
    return option[0] if isinstance(option, tuple | list) and len(option) == 1 else option


def _is_ready(images: Tensor) -> bool:
    """Whether our ops take them as they are."""
    return images.dtype in FLOATS and not autocast_is_on(images)


def _unmapped(tensor: Tensor) -> Tensor:
    while is_batchedtensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


@contextmanager
def buffers_kept(owner: str, model: nn.Module) -> Generator[None]:
    """Refuses a forward that changes a buffer, which tasks would share.

    Raises:
        NotImplementedError: naming the module and its buffer. One that was assigned is put back.
    """
    before = [
        (name, module, key, buffer, _version(buffer))
        for name, module in model.named_modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    changed = []
    try:
        yield
    finally:
        for name, module, key, buffer, version in before:
            if module._buffers.get(key) is not buffer or _version(buffer) != version:
                module._buffers[key] = buffer
                changed.append(f"{named(name, module)}, which changes {key!r}")
    if changed:
        raise NotImplementedError(
            f"{owner}: expected model to change no buffer in its forward, which tasks would share, "
            f"got {changed[0]}; a norm of the weights keeps its estimate as it is in evaluation "
            "mode (module.eval())"
        )


def named(name: str, module: nn.Module) -> str:
    """A module inside of a model, or the model itself, as messages call it."""
    kind = type(module).__name__
    return f"its {name!r} ({kind})" if name else kind


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version
