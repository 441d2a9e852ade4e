"""Formatting, lint, and what the repository's files must not hold."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).resolve().parent.parent
CPP = (".cpp", ".cu", ".cuh", ".h")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def repository_files() -> list[Path]:
    """What git tracks, or would track if it were added now."""
    listing = run(
        *("git", "-c", "safe.directory=*", "ls-files", "-z"),
        *("--cached", "--others", "--exclude-standard"),
    )
    assert listing.returncode == 0, listing.stderr
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(command):
    result = run(sys.executable, "-m", "ruff", *command, ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_clang_format():
    tool = Path(sysconfig.get_path("scripts"), "clang-format")
    sources = [path for path in repository_files() if path.suffix in CPP]
    assert sources
    result = run(tool, "--dry-run", "-Werror", *sources)
    assert result.returncode == 0, result.stderr


# The patterns are spelled so that this file does not match them.
UNWANTED = {
    "a path of one machine": r"(?<![\w.])/(?:home|root|work|Users)/\w",
    "an unfinished place": r"\b(?:TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b",
    "a debugger": r"\b(?:break[p]oint\(\)|pd[b]\.set_trace)",
    "a conflict marker": r"^(?:<{7}|>{7})(?: |$)",
    "trailing white space": r"[ \t]+$",
}


@pytest.mark.parametrize("pattern", UNWANTED.values(), ids=UNWANTED.keys())
def test_no_file_holds(pattern):
    unwanted = re.compile(pattern, re.MULTILINE)
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and arrays
        for match in unwanted.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()!r}")
    assert not found, "\n".join(found)


def test_text_files_end_with_one_newline():
    suffixes = (*CPP, ".md", ".py", ".toml")
    texts = {path: path.read_text() for path in repository_files() if path.suffix in suffixes}
    bad = [
        str(path.relative_to(ROOT))
        for path, text in texts.items()
        if text and (not text.endswith("\n") or text.endswith("\n\n"))
    ]
    assert not bad, bad


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_of_the_documents_come_from_the_raw_results(path):
    assert tables.render(path) == path.read_text(encoding="utf-8")
