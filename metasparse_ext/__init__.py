"""Sparse meta-learning for PyTorch: task-batched ops, implicit differentiation, and learners."""

__version__ = "0.1.0"

from metasparse_ext import data, implicit
from metasparse_ext._info import info
from metasparse_ext.ops import masked_conv2d

__all__ = ["data", "implicit", "info", "masked_conv2d"]
