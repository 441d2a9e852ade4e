"""Code blocks of the documents and cells of the notebooks: what they are, and how each runs.

The blocks of a document run in their order, in one folder and, those in Python, in one namespace.
A block whose first line is ``# NAME.py`` or ``# NAME.toml`` is that file. What a document takes for
granted, such as a folder of data, is in ``tests/support/document_inputs.py``; what would take
hours, or changes the machine, is replaced by the tables here, and by nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner

import metasparse_ext as ms
from metasparse_ext import cli

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = tuple(sorted(f"notebooks/{path.name}" for path in ROOT.glob("notebooks/*.ipynb")))
PAGES = sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *PAGES, *NOTEBOOKS)
LANGUAGES = ("python", "sh", "text", "toml")

# Flags that make a command short, after those that are printed: the last one counts.
SHORT_TRAINING = (
    "--iterations 2 --width 4 --validate-every 2 --validation-tasks 2 --evaluation-tasks 4"
)
FLAGS = {
    ("README.md", "train imaml"): f"{SHORT_TRAINING} --inner-steps 2",
    ("README.md", "train metadock"): f"{SHORT_TRAINING} --inner-steps 2",
    ("README.md", "train mine:Learner"): SHORT_TRAINING,
    ("README.md", "train maml --data sinusoid"): SHORT_TRAINING,
    ("README.md", "train --config settings.toml"): SHORT_TRAINING,
    ("docs/learners.md", "train meta-ticket"): f"{SHORT_TRAINING} --rounds 1 --inner-steps 2",
    ("docs/learners.md", "train imaml"): SHORT_TRAINING,
    ("docs/learners.md", "train mine:Reptile"): SHORT_TRAINING,
    ("docs/training.md", "train maml"): SHORT_TRAINING,
}
# A reporter that needs an account elsewhere.
SERVICE = (" --report wandb", "")
# Words of Python blocks that take minutes, or that a machine without a GPU cannot take.
SHORT_NOTEBOOK = {
    "iterations=600": "iterations=2",
    "iterations=300": "iterations=2",
    "validate_every=200": "validate_every=2, validation_tasks=2",
    "validate_every=50": "validate_every=2",
    "evaluation_tasks=200": "evaluation_tasks=4",
    '"check_every": 20': '"check_every": 1, "window": 2',
}
WORDS = {
    **dict.fromkeys(NOTEBOOKS, SHORT_NOTEBOOK),
    "docs/data.md": {"queries=15": "queries=1"},
    "docs/gpu.md": {} if torch.cuda.is_available() else {"capturable=True, ": ""},
}
if not torch.cuda.is_available():
    for words in (WORDS["docs/data.md"], WORDS["docs/gpu.md"]):
        words['"cuda"'] = '"cpu"'
# Batches that a loop over endless episodes gets.
BATCHES = {"README.md": 2, "docs/learners.md": 2, "docs/data.md": 2}

FILE = re.compile(r"# (\S+\.(?:py|toml))\n")


class Block(NamedTuple):
    """A fenced block, by the line of its opening fence; or a cell of a notebook, by its number."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    """The blocks of a document, in their order."""
    if document.endswith(".ipynb"):
        return list(cells(document))
    found, start = [], None
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
        else:
            text = "".join(f"{each}\n" for each in lines[start + 1 : number])
            found.append(Block(document, start + 1, lines[start].strip("` "), text))
            start = None
    assert start is None, f"{document}:{start + 1}: the block has no end"
    return found


def cells(notebook: str) -> Iterator[Block]:
    """The cells of a notebook that are code, in their order."""
    held = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(held, 1):
        if cell["cell_type"] == "code":
            yield Block(notebook, number, "python", "".join(cell["source"]) + "\n")


class Reading:
    """A document that is being read: its folder, its names, and how far it has been run."""

    def __init__(self, document: str, folder: Path, given: Callable[[Path], dict[str, Any]]):
        self.document = document
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.given = given
        self.ahead = blocks(document)
        self.outcomes: dict[Block, BaseException | None] = {}

    def run(self, block: Block) -> None:
        """Runs all up to this block, once; raises what it raised."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.syspath_prepend(self.folder)
            patch.setattr(ms, "keep_memory", lambda: True)  # it would hold for the other tests
            while block not in self.outcomes:
                if not self.outcomes:
                    self.names.update(self.given(self.folder))
                self._run_next()
            sys.modules.pop("mine", None)
        error = self.outcomes[block]
        if error is not None:
            raise error

    def _run_next(self) -> None:
        block = self.ahead.pop(0)
        self.outcomes[block] = None
        try:
            if match := FILE.match(block.text):
                Path(match[1]).write_text(block.text, encoding="utf-8")
                importlib.invalidate_caches()
            elif block.language == "python":
                self._run_python(block)
            elif block.language == "sh":
                for line in block.text.splitlines():
                    run_command(block.document, line)
        except (Exception, pytest.skip.Exception) as error:
            self.outcomes[block] = error

    def _run_python(self, block: Block) -> None:
        text = block.text
        for words, instead in WORDS.get(self.document, {}).items():
            text = text.replace(words, instead)
        # Tracebacks name the line of the document.
        code = compile("\n" * block.line + text, str(ROOT / self.document), "exec")
        with pytest.MonkeyPatch.context() as patch:
            if self.document in BATCHES:
                ending = _ending(ms.data.episodes, BATCHES[self.document])
                patch.setattr(ms.data, "episodes", ending)
            exec(code, self.names)


def _ending(episodes: Callable[..., Iterator[Any]], count: int) -> Callable[..., Iterator[Any]]:
    return lambda *args, **options: islice(episodes(*args, **options), count)


def run_command(document: str, line: str) -> None:
    """Runs a line of a shell block, or what stands in for it."""
    words = shlex.split(line.replace(*SERVICE), comments=True)
    if not words:
        return
    for start, run in COMMANDS.items():
        if line.startswith(start):
            run(document, words[len(start.split()) :])
            return
    raise AssertionError(f"no way to run {line!r}: COMMANDS in {__file__} has none")


def _metasparse(document: str, arguments: list[str]) -> None:
    command = " ".join(arguments)
    more = [
        flags
        for (where, start), flags in FLAGS.items()
        if where == document and command.startswith(start)
    ]
    ended = CliRunner().invoke(cli.main, [*arguments, *shlex.split(" ".join(more))])
    if ended.exit_code != 0:
        raise AssertionError(f"metasparse {command}: exit code {ended.exit_code}\n{ended.output}")


def _benchmark(document: str, arguments: list[str]) -> None:
    """They measure for minutes: their arguments are read, and no more."""
    parse = argparse.ArgumentParser.parse_args

    def parsed_and_no_more(parser: argparse.ArgumentParser, *args: Any) -> None:
        parse(parser, *args)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        module, *flags = arguments
        patch.setattr(sys, "argv", [module, *flags])
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed_and_no_more)
        patch.syspath_prepend(ROOT)
        sys.modules.pop(module, None)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
        assert ended.value.code == 0, f"{module}: exit code {ended.value.code}"


def _make(document: str, arguments: list[str]) -> None:
    """Targets set up environments: make says what it would do."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--dry-run", "--directory", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _pip(document: str, arguments: list[str]) -> None:
    """The environment stays as it is: extras are looked up."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for argument in arguments:
        for name in re.findall(r"^(?:\.|metasparse_ext)\[(.+)\]$", argument):
            assert set(name.split(",")) <= set(extras["optional-dependencies"]), argument


def _server(document: str, arguments: list[str]) -> None:
    """It would run until it is stopped."""


# What runs a command, by its first words; it gets the others.
COMMANDS: dict[str, Callable[[str, list[str]], None]] = {
    "metasparse": _metasparse,
    "python -m metasparse_ext": _metasparse,
    "python -m": _benchmark,
    "make": _make,
    "pip install": _pip,
    "tensorboard": _server,
}
