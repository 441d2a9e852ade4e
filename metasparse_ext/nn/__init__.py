"""Task-aware layers, masks, and networks: ordinary modules that also work on a task axis.

Each module takes images (N, C, H, W) like any other, or (T, N, C, H, W) for T tasks at once; then
every parameter may have a leading T as well, installed by ``torch.func.functional_call``.
"""

from metasparse_ext.nn.conv4 import Conv4, ConvBlock
from metasparse_ext.nn.cost import Cost, LayerCost, cost
from metasparse_ext.nn.film import FiLM
from metasparse_ext.nn.initial import initialize
from metasparse_ext.nn.learned_topk import LearnedTopKMask
from metasparse_ext.nn.linear import Linear
from metasparse_ext.nn.masked_conv import MaskedConv2d
from metasparse_ext.nn.masks import FixedMask, ScoreMask, TopKMask
from metasparse_ext.nn.mlp import MLP
from metasparse_ext.nn.norm import BatchNorm2d, NormActPool
from metasparse_ext.nn.resnet12 import ResBlock, ResNet12
from metasparse_ext.nn.sparsify import sparsify
from metasparse_ext.nn.task_axis import is_task_aware

__all__ = [
    "MLP",
    "BatchNorm2d",
    "Conv4",
    "ConvBlock",
    "Cost",
    "FiLM",
    "FixedMask",
    "LayerCost",
    "LearnedTopKMask",
    "Linear",
    "MaskedConv2d",
    "NormActPool",
    "ResBlock",
    "ResNet12",
    "ScoreMask",
    "TopKMask",
    "cost",
    "initialize",
    "is_task_aware",
    "sparsify",
]
