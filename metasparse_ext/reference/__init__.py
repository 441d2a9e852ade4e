"""Each op's definition in a few lines of plain PyTorch. The tests hold every backend to these."""

from metasparse_ext.reference.binary_mask import binary_mask
from metasparse_ext.reference.depthwise_conv import depthwise_conv
from metasparse_ext.reference.masked_conv import masked_conv, masked_weight, planar
from metasparse_ext.reference.norm_act_pool import norm_act_pool
from metasparse_ext.reference.score_gate import add_budget_gradient, score_gate
from metasparse_ext.reference.task_cross_entropy import task_cross_entropy
from metasparse_ext.reference.task_linear import task_linear
from metasparse_ext.reference.topk_mask import topk_mask

__all__ = [
    "add_budget_gradient",
    "binary_mask",
    "depthwise_conv",
    "masked_conv",
    "masked_weight",
    "norm_act_pool",
    "planar",
    "score_gate",
    "task_cross_entropy",
    "task_linear",
    "topk_mask",
]
