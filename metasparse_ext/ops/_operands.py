"""What every op asks about a tensor beyond its type and shape."""

import contextlib

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from metasparse_ext._arguments import NARROW_FLOATS, refuse, require_floating, require_number, shown
from metasparse_ext._capture import observed


def autocast_is_on(tensor: Tensor) -> bool:
    """Whether an autocast region surrounds the call; never on devices that have none."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def is_cast(tensor: Tensor, x: Tensor) -> bool:
    """Whether a surrounding autocast region makes an operand float32, beside ``x``.

    It leaves float64 alone, which so mixes with nothing else.
    """
    wide = torch.float64 in (tensor.dtype, x.dtype)
    return tensor.is_floating_point() and not wide and autocast_is_on(x)


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Leaves a surrounding autocast region for a ``with`` block."""
    if not torch.amp.is_autocast_available(tensor.device.type):
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def is_widened(tensor: Tensor) -> bool:
    """Whether an op computes in float32 and rounds: the CPU has no kernels of the dtype.

    Under autocast, which casts by itself, results stay float32.
    """
    return tensor.dtype in NARROW_FLOATS and tensor.is_cpu and not autocast_is_on(tensor)


def are_ready(dtypes: tuple[torch.dtype, ...], *operands: tuple[Tensor | None, int]) -> bool:
    """A fast test that most valid operands pass, so that the checks with messages can be skipped.

    Args:
        dtypes: That are computed as they are.
        operands: Each with its number of dimensions without tasks.

    Returns:
        True if all are dense tensors of one of the dtypes on one device, outside autocast, the
        first with a task axis of at least one task, the others with the same, without, or None.
        False says nothing: the operands may be valid still.
    """
    first, rank = operands[0]
    if (
        not isinstance(first, Tensor)
        or first.dtype not in dtypes
        or first.layout is not torch.strided
    ):
        return False
    if first.is_nested or first.dim() != rank + 1 or autocast_is_on(first):
        return False
    dtype, device, tasks = first.dtype, first.device, first.shape[0]
    for tensor, rank in operands[1:]:
        if tensor is None:
            continue
        fits = (
            isinstance(tensor, Tensor)
            and tensor.dtype is dtype
            and tensor.layout is torch.strided
            and not tensor.is_nested
            and tensor.device == device
            and (tensor.dim() == rank or (tensor.dim() == rank + 1 and tensor.shape[0] == tasks))
        )
        if not fits:
            return False
    return tasks > 0


def is_readable(tensor: Tensor) -> bool:
    """Whether the host may look at the values.

    Not where there are none, nor under a transform of ``torch.func`` or while a program is traced,
    nor in a meta-step or a CUDA graph that is captured.
    """
    # Compiling first: it cannot trace what observed() asks.
    return (
        not torch.compiler.is_compiling()
        and observed()
        and not (
            tensor.is_meta
            or isinstance(tensor, FakeTensor)
            or is_functorch_wrapped_tensor(tensor)
            or get_proxy_mode() is not None
            or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
        )
    )


def require_strength(
    owner: str, name: str, got: float | Tensor, dtype: torch.dtype | None = None
) -> None:
    """Refuses a number, or a tensor whose values may be read, that is not finite and above zero.

    With a ``dtype`` the number has to be so in that too.
    """
    if not isinstance(got, Tensor):
        require_number(owner, name, got, above=0.0)
        limits = torch.finfo(dtype or torch.float64)
        if not limits.tiny <= got <= limits.max:
            refuse(owner, name, f"from {limits.tiny:.3g} to {limits.max:.3g}", shown(got))
        return
    require_floating(owner, name, got)
    if is_readable(got):
        wrong = ~((got > 0) & got.isfinite())
        if bool(wrong.any()):
            refuse(owner, name, "finite and above 0", f"{got[wrong][0].item():g}")
