"""Makers of masks: small modules that turn a layer's weight into the mask of its kernels.

A maker is called with the weight of its layer, (O, I, kh, kw) or (T, O, I, kh, kw), and returns a
tensor of zeros and ones: one number a kernel, (O, I) or (T, O, I), or one number a weight, in the
weight's shape. What a maker learns is an ordinary parameter, so learners adapt it per task like any
other. A maker whose masks pass no gradient back has ``learned = False``.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from metasparse_ext._arguments import (
    refuse,
    require,
    require_choice,
    require_flag,
    require_floating,
    require_number,
    require_place,
    require_shape,
    require_size,
    require_tensor,
    shown,
)
from metasparse_ext.ops import score_gate, topk_mask

Granularity = Literal["weight", "kernel", "channel"]


class FixedMask(nn.Module):
    """A mask that is given, not learned, and kept in the state dict.

    Built on ``meta``, it takes its values again as soon as ``to_empty`` gives it memory.

    Args:
        mask: (O, I), one entry a kernel, or (O, I, kh, kw), one entry a weight; zeros and ones of
            any dtype.
        device: Where the mask goes; that of ``mask`` by default.

    Raises:
        TypeError: if the mask is not a dense tensor of real numbers.
        ValueError: if the mask has another number of dimensions or other values than 0 and 1.
    """

    learned = False
    mask: Tensor

    def __init__(self, mask: Tensor, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        require_tensor("FixedMask", "mask", mask)
        require_place("FixedMask", device, None)
        require_shape("FixedMask", "mask", mask, tuple("OI"), ("O", "I", "kh", "kw"))
        if mask.dtype.is_complex:
            refuse("FixedMask", "mask", "of a real dtype", shown(mask.dtype), TypeError)
        if _has_values(mask):
            wrong = mask[(mask != 0) & (mask != 1)]
            require(wrong.numel() == 0, "FixedMask", "mask", "zeros and ones", wrong[:1].tolist())
        self._given = _kept_values(mask.detach())
        self.register_buffer("mask", mask.detach().to(device or mask.device, copy=True))

    def reset_parameters(self) -> None:
        """Gives the mask the values that it was built with.

        Raises:
            RuntimeError: if it was built of a mask on ``meta``, which has no values.
        """
        if self._given is None:
            raise RuntimeError(
                "FixedMask: mask has no values to go back to, because it was given on meta; "
                "load a state dict or assign another masker"
            )
        with torch.no_grad():
            self.mask.copy_(self._given)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FixedMask":
        """What ``to_empty`` and the other movers call: memory that is new has no values yet."""
        waited = self.mask.is_meta
        super()._apply(fn, recurse)
        if waited and not self.mask.is_meta:
            self.reset_parameters()
        return self

    def forward(self, weight: Tensor) -> Tensor:
        return self.mask.to(weight.dtype)

    def extra_repr(self) -> str:
        if not _has_values(self.mask):
            return f"{tuple(self.mask.shape)}, on meta"
        return f"{tuple(self.mask.shape)}, {self.mask.float().mean().item():.1%} active"


def require_maker(owner: str, name: str, got: nn.Module, weight: Tensor) -> None:
    """Refuses a module that does not turn the weight into a mask of its kernels or of itself.

    A module of another package is tried; those of this one are known.
    """
    size = tuple(weight.shape)
    shapes = (size[:2], size)
    if isinstance(got, TopKMask):
        return
    if isinstance(got, (FixedMask, ScoreMask)):
        held = got.mask if isinstance(got, FixedMask) else got.scores
        require_shape(owner, name, held, *shapes)
        return
    expected = f"a maker of masks for a weight of shape {size}"
    try:
        with torch.no_grad():
            made = got(weight)
    except Exception as error:
        shows = f"{type(got).__name__}, which fails: {error}"
        raise TypeError(f"{owner}: expected {name} to be {expected}, got {shows}") from error
    if not isinstance(made, Tensor) or tuple(made.shape) not in shapes:
        refuse(owner, name, expected, f"{type(got).__name__}, which makes {shown(made)}", TypeError)
    if _has_values(made) and not bool(((made == 0) | (made == 1)).all()):
        came = f"{type(got).__name__}, which makes other numbers than zeros and ones"
        refuse(owner, name, expected, came)


def _kept_values(mask: Tensor) -> Tensor | None:
    """A mask's values at a byte an entry, or one byte in all for the usual one, which is whole."""
    if not _has_values(mask):
        return None
    kept = mask.to("cpu", torch.bool, copy=True)
    return torch.ones((), dtype=torch.bool, device="cpu") if kept.all() else kept


def _has_values(tensor: Tensor) -> bool:
    """Whether there is memory behind a tensor: a fake one, or one on meta, has only a shape."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


class ScoreMask(nn.Module):
    """MetaDOCK's gate: a kernel is active where the logistic of its learned score exceeds one half.

    The forward value is ``1[sigmoid(score) > 0.5]``. The gradient passes straight through the
    threshold and truly through the logistic, so a pruned kernel keeps a gradient and can come back.

    Args:
        out_channels: O.
        in_channels: I.
        low, high: Scores start uniform in [low, high); the default of MetaDOCK's code starts with
            every kernel active.
        device, dtype: Of the scores.

    Attributes:
        gates: The mask itself, while somebody has computed it for many layers at once
            (:func:`holding_gates`); else None.

    Source: MetaDOCK (Chavan et al., CVPR 2022) and its public code.
    """

    gates: Tensor | None = None

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        low: float = 0.0,
        high: float = 0.01,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_size("ScoreMask", "out_channels", out_channels)
        require_size("ScoreMask", "in_channels", in_channels)
        require_number("ScoreMask", "low", low)
        require_number("ScoreMask", "high", high)
        require(low <= high, "ScoreMask", "low and high", "in order", (low, high))
        require_place("ScoreMask", device, dtype)
        self.low, self.high = low, high
        self.scores = nn.Parameter(
            torch.empty(out_channels, in_channels, device=device, dtype=dtype)
        )
        self.reset_parameters()

    @classmethod
    def like(cls, weight: Tensor, low: float = 0.0, high: float = 0.01) -> "ScoreMask":
        """Scores for a weight (O, I, kh, kw), on its device and of its dtype."""
        require_floating("ScoreMask.like", "weight", weight)
        require_shape("ScoreMask.like", "weight", weight, ("O", "I", "kh", "kw"))
        return cls(
            weight.shape[0], weight.shape[1], low, high, device=weight.device, dtype=weight.dtype
        )

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.scores, self.low, self.high)

    def forward(self, weight: Tensor) -> Tensor:
        return score_gate(self.scores) if self.gates is None else self.gates

    def extra_repr(self) -> str:
        return f"{tuple(self.scores.shape)}, init=U({self.low:g}, {self.high:g})"


@contextmanager
def holding_gates(maskers: Sequence[ScoreMask], gates: Sequence[Tensor]) -> Generator[None]:
    """Has maskers return these masks, (O, I) or (T, O, I), in place of those of their scores."""
    try:
        for masker, mask in zip(maskers, gates, strict=True):
            masker.gates = mask
        yield
    finally:
        for masker in maskers:
            masker.gates = None


class TopKMask(nn.Module):
    """Keeps the largest weights of its layer, ``round(density * n)`` of n, chosen at every call.

    Because the mask follows the weight, a task whose weights were adapted gets its own mask. The
    weight is detached before it is ranked: the mask passes no gradient back to it.

    Args:
        density: Kept fraction, in [0, 1].
        granularity: ``"weight"`` ranks single weights, ``"kernel"`` ranks kernels by the mean of
            their scores, ``"channel"`` ranks output channels in the same way.
        signed: Rank by the value instead of the magnitude.

    Source: the supermask of GEMS (WACV 2023), supplement, listings 3 and 4.
    """

    learned = False
    granularity: Granularity

    def __init__(
        self, density: float, granularity: Granularity = "weight", *, signed: bool = False
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        require_number(owner, "density", density, least=0.0, most=1.0)
        require_choice(owner, "granularity", granularity, Granularity)
        require_flag(owner, "signed", signed)
        self.density, self.granularity, self.signed = density, granularity, signed

    def forward(self, weight: Tensor) -> Tensor:
        ranked = weight.detach() if self.signed else weight.detach().abs()
        return topk_mask(ranked, self.density, granularity=self.granularity)

    def extra_repr(self) -> str:
        return f"density={self.density:g}, granularity={self.granularity!r}, signed={self.signed}"
