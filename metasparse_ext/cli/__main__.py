"""``python -m metasparse_ext.cli``."""

from metasparse_ext.cli import main

main(prog_name="metasparse")
