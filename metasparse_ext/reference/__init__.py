"""Each op's definition in a few lines of plain PyTorch. The tests hold every backend to these."""

from metasparse_ext.reference.binary_mask import binary_mask
from metasparse_ext.reference.masked_conv import masked_conv
from metasparse_ext.reference.topk_mask import topk_mask

__all__ = ["binary_mask", "masked_conv", "topk_mask"]
