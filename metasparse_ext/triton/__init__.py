"""Triton kernels of the ops, a module or package per op, kernels beside what launches them.

Importing this package needs no Triton; importing one of its modules does. Launchers are plain
functions of tensors with the argument lists of the ``metasparse::`` ops, so they run on a GPU and,
with ``TRITON_INTERPRET=1``, on the CPU. Nothing here registers anything:
:mod:`metasparse_ext.ops.cuda` decides when a launcher serves a call.
"""
