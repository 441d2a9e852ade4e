"""``python -m metasparse_ext``: the command line."""

from metasparse_ext.cli import program

program()
