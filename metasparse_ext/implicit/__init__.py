"""Implicit differentiation over T tasks at once: linearise, solve, differentiate.

``Layout`` maps named tensors to one flat (T, P) buffer, ``linearize`` gives losses, gradients and
curvature products on it, ``damped`` the named operators, ``cg`` their solve, and
``implicit_gradient`` is the whole in one call.
"""

from metasparse_ext.implicit.cg import CGResult, CGStatus, cg
from metasparse_ext.implicit.gradient import ImplicitGradient, implicit_gradient
from metasparse_ext.implicit.layout import Layout
from metasparse_ext.implicit.linearize import Linearization, linearize
from metasparse_ext.implicit.losses import task_losses, task_outputs
from metasparse_ext.implicit.operators import KINDS, DampedOperator, damped

__all__ = [
    "KINDS",
    "CGResult",
    "CGStatus",
    "DampedOperator",
    "ImplicitGradient",
    "Layout",
    "Linearization",
    "cg",
    "damped",
    "implicit_gradient",
    "linearize",
    "task_losses",
    "task_outputs",
]
