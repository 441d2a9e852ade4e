"""Sparse meta-learning for PyTorch: task-batched ops, implicit differentiation, and learners."""

__version__ = "0.1.0"

from metasparse_ext import data, implicit
from metasparse_ext._capture import capture
from metasparse_ext._info import info
from metasparse_ext.ops import (
    backend,
    binary_mask,
    explain,
    get_backend,
    masked_conv2d,
    norm_act_pool,
    set_backend,
    topk_mask,
)

__all__ = [
    "backend",
    "binary_mask",
    "capture",
    "data",
    "explain",
    "get_backend",
    "implicit",
    "info",
    "masked_conv2d",
    "norm_act_pool",
    "set_backend",
    "topk_mask",
]
