"""Batch norm, activation and max-pool as one differentiable op over a batch of tasks."""

from collections.abc import Callable

import torch
from torch import Tensor

from metasparse_ext import _library, reference
from metasparse_ext._arguments import (
    FLOATS,
    NARROW_FLOATS,
    refuse,
    require_choice,
    require_like,
    require_number,
    require_shape,
    require_tensor,
)
from metasparse_ext.ops._operands import are_ready, autocast_is_on, is_widened
from metasparse_ext.ops._register import register
from metasparse_ext.ops._tasks import with_tasks

_OP = "norm_act_pool"
ACTIVATIONS = ("relu", "none")
ORDERS = ("norm_act_pool", "norm_pool_act", "act_pool_norm")
POOLS = (False, True, 0, 2)


def norm_act_pool(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "relu",
    pool: bool | int = False,
    order: str = "norm_act_pool",
) -> Tensor:
    """Applies the block that follows a convolution, with the batch statistics of each task.

    With ``x̂ = (x - mean) / sqrt(variance + eps)``, where the mean and the biased variance are
    those of one task's channel over its samples and positions, the block is

    * ``"norm_act_pool"``: ``pool(act(weight * x̂ + bias))``, the order of MAML and MetaDOCK;
    * ``"norm_pool_act"``: ``act(pool(weight * x̂ + bias))``, the order of Reptile, and of CAVIA when
      ``activation="none"`` leaves room for the modulation that CAVIA puts before its ReLU. A ReLU
      and a max-pool commute, so this order equals the first one, derivatives included;
    * ``"act_pool_norm"``: ``weight * û + bias`` of ``u = pool(act(x))``, whose statistics are
      taken over ``u``: the order of hypertorch.

    An odd last row or column belongs to no pooling window, but in the first two orders it does
    count in the statistics. Ties of a window go to its first element and the derivative of ReLU
    at 0 is 0, as in PyTorch; a NaN spreads to its task and channel. Statistics are never kept from
    one call to the next. Differentiable to any order in x, weight and bias, in reverse and in
    forward mode.

    Args:
        x: ``(N, C, H, W)``, or ``(T, N, C, H, W)`` for T tasks; float32 or float64, or bfloat16 or
            float16, which are computed in float32 and rounded once. Under autocast every
            floating-point dtype is accepted and float32 computed.
        weight: Scale, ``(C,)`` or per task ``(T, C)``, of x's dtype. None means 1.
        bias: Shift, ``(C,)`` or per task ``(T, C)``, of x's dtype. None means 0.
        eps: Added to the variance.
        activation: ``"relu"`` or ``"none"``.
        pool: ``True`` or 2: max over 2x2 windows with stride 2. ``False`` or 0: no pooling.
        order: One of the three above.

    Returns:
        ``(T, N, C, H', W')`` if any argument has a task axis, else ``(N, C, H', W')``;
        ``H' = H // 2`` and ``W' = W // 2`` with pooling.

    Raises:
        TypeError: An argument is not a tensor, or dtypes are unsupported or differ.
        ValueError: A shape, option or eps that does not fit.
    """
    tasks = _check(x, weight, bias, eps, activation, pool, order)
    if is_widened(x):
        weight, bias = (None if t is None else t.float() for t in (weight, bias))
        y = norm_act_pool(
            x.float(), weight, bias, eps=eps, activation=activation, pool=pool, order=order
        )
        return y.to(x.dtype)
    if not _library.loaded():
        return reference.norm_act_pool(
            x, weight, bias, eps=eps, activation=activation, pool=pool, order=order
        )
    count = 1 if tasks is None else tasks
    y = torch.ops.metasparse.norm_act_pool(
        with_tasks(x, 4, count),
        with_tasks(weight, 1, count),
        with_tasks(bias, 1, count),
        eps,
        activation == "relu",
        bool(pool),
        order != "act_pool_norm",  # ReLU and max-pool commute
    )[0]
    return y if tasks is not None else y.squeeze(0)


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    pool: bool | int,
    order: str,
) -> int | None:
    """Checks every argument; returns T, or None when no argument has a task axis."""
    require_choice(_OP, "activation", activation, ACTIVATIONS)
    require_choice(_OP, "order", order, ORDERS)
    require_choice(_OP, "pool", pool, POOLS)
    require_number(_OP, "eps", eps, least=0.0)
    ready = are_ready(FLOATS, (x, 4), (weight, 1), (bias, 1))
    if not ready:
        require_tensor(_OP, "x", x)
        if not _to_be_cast(x):
            require_tensor(_OP, "x", x, dtypes=(*FLOATS, *NARROW_FLOATS))
        require_shape(_OP, "x", x, tuple("NCHW"), tuple("TNCHW"))
    least = 2 if pool else 1
    fits = x.size(-4) >= 1 and x.size(-2) >= least and x.size(-1) >= least
    if not fits:
        refuse(_OP, "x", f"of N >= 1 and H, W >= {least}", f"shape {tuple(x.shape)}")
    tasks = x.size(0) if x.dim() == 5 else None
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and not (ready and value.size(-1) == x.size(2)):
            tasks = _check_affine(name, value, x, tasks)
    return tasks


def _check_affine(name: str, value: Tensor, x: Tensor, tasks: int | None) -> int | None:
    """Checks weight or bias; returns the number of tasks that the arguments agree on so far."""
    require_tensor(_OP, name, value)
    require_like(_OP, name, value, "x", x, dtype=not _to_be_cast(value))
    channels = x.size(-3)
    require_shape(_OP, name, value, (channels,), ("T" if tasks is None else tasks, channels))
    return value.size(0) if value.dim() == 2 else tasks


def _to_be_cast(tensor: Tensor) -> bool:
    """Whether a surrounding autocast region makes it float32."""
    return tensor.is_floating_point() and autocast_is_on(tensor)


def _new_output(x: Tensor, pool: bool, dtype: torch.dtype | None = None) -> Tensor:
    size = [d // 2 if pool else d for d in x.shape[-2:]]
    return x.new_empty((*x.shape[:3], *size), dtype=dtype)


def _new_per_channel(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2]))


def _gate(x: Tensor, relu: bool, pool: bool) -> Tensor:
    if relu or pool:
        return _new_output(x, pool, torch.uint8)
    return x.new_empty((x.shape[0], 0), dtype=torch.uint8)


# The shapes of results.
_FAKES: dict[str, Callable[..., object]] = {
    "norm_act_pool": lambda x, _weight, _bias, _eps, relu, pool, _: (
        _new_output(x, pool),
        _new_per_channel(x),
        _new_per_channel(x),
        _gate(x, relu, pool),
    ),
    "norm_act_pool_backward": lambda grad, x, *_: (
        x.new_empty(x.shape),
        _new_per_channel(x),
        _new_per_channel(x),
    ),
    "norm_act_pool_tangent": lambda x_dot, *rest: _new_output(x_dot, rest[-2]),
    "norm_act_pool_double_backward": lambda x_dot, _weight_dot, _bias_dot, grad, x, *rest: (
        _new_output(x, rest[-2]),
        x.new_empty(x.shape),
        _new_per_channel(x),
    ),
}


if _library.problem is None:
    register(_FAKES)
