"""Implicit differentiation over T tasks at once: linearise, solve, differentiate.

``Layout`` maps named tensors to one flat (T, P) buffer, ``linearize`` gives losses, gradients and
curvature products on it, ``damped`` the named operators, ``cg`` their solve, and
``implicit_gradient`` is the whole in one call. ``softmax_head`` is the special case whose inner
problem is convex and solved exactly, ``ridge_head`` the one that is solved in closed form.
"""

from metasparse_ext.implicit.cg import CGResult, CGStatus, cg
from metasparse_ext.implicit.gradient import ImplicitGradient, implicit_gradient, implicit_solve
from metasparse_ext.implicit.head import HeadReport, HeadSolution, HeadStatus, softmax_head
from metasparse_ext.implicit.head_problem import HeadProblem
from metasparse_ext.implicit.head_solvers import SOLVERS
from metasparse_ext.implicit.hessian_free import HessianFree, hessian_free
from metasparse_ext.implicit.layout import Layout
from metasparse_ext.implicit.linearize import CURVATURES, Linearization, linearize
from metasparse_ext.implicit.losses import task_losses, task_outputs
from metasparse_ext.implicit.operators import KINDS, DampedOperator, Kind, damped
from metasparse_ext.implicit.ridge import ridge_head

__all__ = [
    "CURVATURES",
    "KINDS",
    "SOLVERS",
    "CGResult",
    "CGStatus",
    "DampedOperator",
    "HeadProblem",
    "HeadReport",
    "HeadSolution",
    "HeadStatus",
    "HessianFree",
    "ImplicitGradient",
    "Kind",
    "Layout",
    "Linearization",
    "cg",
    "damped",
    "hessian_free",
    "implicit_gradient",
    "implicit_solve",
    "linearize",
    "ridge_head",
    "softmax_head",
    "task_losses",
    "task_outputs",
]
