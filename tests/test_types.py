"""The types of what users write against: mypy and pyright, where installed, find nothing."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from metasparse_ext.algorithms.convex_imaml import SolverName
from metasparse_ext.algorithms.pruning import SIGNALS, Signal
from metasparse_ext.implicit import SOLVERS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_nothing_is_found(checker):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    started = subprocess.run([sys.executable, "-m", checker, "--version"], capture_output=True)
    if started.returncode != 0:
        pytest.skip(f"{checker} does not start here")  # pyright fetches what it runs on
    python = {"mypy": ["--python-executable"], "pyright": ["--pythonpath"]}[checker]
    command = [sys.executable, "-m", checker, *python, sys.executable]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(("names", "table"), [(SolverName, SOLVERS), (Signal, SIGNALS)])
def test_types_of_names_are_those_of_the_tables(names, table):
    assert get_args(names) == tuple(table)
