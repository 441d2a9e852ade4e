"""The public ops: differentiable to any order, batched over tasks."""

from metasparse_ext.ops.masked_conv import masked_conv2d

__all__ = ["masked_conv2d"]
