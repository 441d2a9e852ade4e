"""The named linear operators of implicit meta-gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from metasparse_ext._arguments import (
    require_callable,
    require_choice,
    require_floating,
    require_number,
)
from metasparse_ext.ops._operands import require_strength

Kind = Literal["paper", "imaml_dev", "ridge"]
KINDS: tuple[Kind, ...] = ("paper", "imaml_dev", "ridge")

_DEFAULT_DAMPING: dict[Kind, float] = {"paper": 0.0, "imaml_dev": 1.0, "ridge": 0.0}

# Added to lambda by the official iMAML code (its `lam_damping`), whatever the damping asked for.
_IMAML_DEV_OFFSET = 10.0


@dataclass(frozen=True)
class DampedOperator:
    """A v = shift v + scale H v, with H given by its products.

    Attributes:
        hvp: maps (T, P) to (T, P).
        shift: multiple of the identity: a number, or a tensor that broadcasts to (T, P).
        scale: multiple of the curvature: a number, or a tensor (T, 1).
        gain: what the solution of A x = b is multiplied by to give the implicit gradient.
    """

    hvp: Callable[[Tensor], Tensor]
    shift: float | Tensor
    scale: float | Tensor
    gain: float | Tensor

    def __post_init__(self) -> None:
        require_callable("DampedOperator", "hvp", self.hvp, "a function of (T, P)")
        for name in ("shift", "scale", "gain"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                require_floating("DampedOperator", name, value)
            else:
                require_number("DampedOperator", name, value)

    def __call__(self, v: Tensor) -> Tensor:
        return self.shift * v + self.scale * self.hvp(v)


def damped(
    hvp: Callable[[Tensor], Tensor],
    kind: Kind = "paper",
    *,
    lam: float | Tensor,
    damping: float | None = None,
) -> DampedOperator:
    """Makes the operator of an implicit meta-gradient from curvature products.

    =============  ==============================  ====================================
    kind           A                               implicit gradient
    =============  ==============================  ====================================
    ``paper``      (1 + d) I + H / lambda          A^-1 b          (iMAML, equation 6)
    ``imaml_dev``  (1 + d) I + H / (lambda + 10)   A^-1 b          (iMAML's official code)
    ``ridge``      H + (lambda + d) I              lambda A^-1 b   (``paper`` times lambda)
    =============  ==============================  ====================================

    With a lambda for each parameter, ``paper`` and ``imaml_dev`` are multiplied by it, which
    makes them symmetric again: A = (1 + d) lambda + H, of implicit gradient
    lambda A^-1 b, with lambda + 10 for lambda in ``imaml_dev``.

    Numbers of ``imaml_dev`` do not compare with the others': its matrix is another one.

    Args:
        hvp: maps directions (T, P) to curvature products (T, P), e.g. ``linearize(...).hvp``.
        kind: ``"paper"``, ``"imaml_dev"`` or ``"ridge"``.
        lam: strength lambda > 0 of the proximal term: a number, or a tensor () or (T, 1); or one
            for each parameter, (P,) or (T, P). The values of a tensor are looked at where that
            stops neither a transform nor a capture.
        damping: d >= 0, default 0 (``imaml_dev``: 1).

    Raises:
        ValueError: an unknown kind, a lambda that is not positive and finite, or a damping that is
            negative or not finite.
    """
    require_callable("damped", "hvp", hvp, "a function of (T, P)")
    require_choice("damped", "kind", kind, KINDS)
    damping = _DEFAULT_DAMPING[kind] if damping is None else damping
    require_number("damped", "damping", damping, least=0.0)
    require_strength("damped", "lam", lam)
    if kind == "ridge":
        return DampedOperator(hvp, shift=lam + damping, scale=1.0, gain=lam)
    strength = lam + _IMAML_DEV_OFFSET if kind == "imaml_dev" else lam
    if _one_per_parameter(lam):
        return DampedOperator(hvp, shift=(1 + damping) * strength, scale=1.0, gain=strength)
    return DampedOperator(hvp, shift=1 + damping, scale=1 / strength, gain=1.0)


def _one_per_parameter(lam: float | Tensor) -> bool:
    return isinstance(lam, Tensor) and lam.dim() > 0 and lam.shape[-1] != 1
