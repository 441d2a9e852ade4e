"""The public ops: differentiable to any order, batched over tasks."""

from metasparse_ext.ops import (
    conv_backward,
    cuda,
    depthwise_conv,
    flops,
    task_cross_entropy,
    task_linear,
)
from metasparse_ext.ops.backends import backend, get_backend, set_backend
from metasparse_ext.ops.binary_mask import binary_mask
from metasparse_ext.ops.decompositions import decompositions
from metasparse_ext.ops.explain import explain
from metasparse_ext.ops.masked_conv import masked_conv2d
from metasparse_ext.ops.norm_act_pool import norm_act_pool
from metasparse_ext.ops.score_gate import score_gate
from metasparse_ext.ops.topk_mask import topk_mask

__all__ = [
    "backend",
    "binary_mask",
    "conv_backward",
    "cuda",
    "decompositions",
    "depthwise_conv",
    "explain",
    "flops",
    "get_backend",
    "masked_conv2d",
    "norm_act_pool",
    "score_gate",
    "set_backend",
    "task_cross_entropy",
    "task_linear",
    "topk_mask",
]
