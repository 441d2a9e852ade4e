"""The vector work of a conjugate-gradient step as one op; users call `implicit.cg`."""

from __future__ import annotations

import torch
from torch import Tensor

from metasparse_ext import _library
from metasparse_ext.ops._register import register_fake
from metasparse_ext.reference import cg as reference


def cg_step(
    x: Tensor,
    r: Tensor,
    p: Tensor,
    q: Tensor,
    preconditioner: Tensor | None,
    rz: Tensor,
    rr: Tensor,
    limit: Tensor,
    status: Tensor,
    iterations: Tensor,
) -> None:
    """Advances T systems by one step in place; see :func:`metasparse_ext.reference.cg.cg_step`."""
    run = torch.ops.metasparse.cg_step if _library.loaded() else reference.cg_step
    run(x, r, p, q, preconditioner, rz, rr, limit, status, iterations)


if _library.problem is None:
    register_fake("cg_step", lambda *_: None)
