"""Each op's definition in a few lines of plain PyTorch. The tests hold every backend to these."""

from metasparse_ext.reference.masked_conv import masked_conv

__all__ = ["masked_conv"]
