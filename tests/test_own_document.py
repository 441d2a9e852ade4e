"""Every block of docs/own.md runs, those of a section in their order and in one folder."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from metasparse_ext import cli
from metasparse_ext.training import Run, metrics

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "own.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|toml))\n")


def run_commands(text):
    for line in text.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "metasparse"
        ended = CliRunner().invoke(cli.main, arguments)
        assert ended.exit_code == 0, f"{line}\n{ended.output}"


def check_by_name(printed):
    accuracies = [r["accuracy"] for r in metrics.read(Run("runs/mine").metrics_path)]
    assert accuracies[-1] > 0.5


def check_settings(printed):
    assert Run("runs/file").config().options == {"inner_lr": 0.2}
    assert Run("runs/again").config() == Run("runs/file").config().replace(seed=1)


def check_sweeps(printed):
    seeds = sorted(path.name for path in Path("runs/seeds").iterdir())
    assert seeds == ["seed-0", "seed-1", "seed-2"]
    assert len(list(Path("runs/sweep").iterdir())) == 4


def check_regression(printed):
    records = metrics.read(Run("runs/waves").metrics_path)
    errors = [record["mse"] for record in records if record["kind"] == "train"]
    assert sum(errors[-20:]) < sum(errors[:20])
    assert "mae" in metrics.read(Run("runs/lines").metrics_path)[-1]


def check_objects(printed):
    assert "evaluate_run: expected data to be given, because the run was trained with" in printed


CHECKS = {
    "By name": check_by_name,
    "Settings in a file": check_settings,
    "Seeds and sweeps": check_sweeps,
    "Regression": check_regression,
    "Objects": check_objects,
}


@pytest.fixture(scope="module")
def sections():
    """The blocks of each section, and the files that are among them."""
    text = DOCUMENT.read_text(encoding="utf-8")
    parts = (part.partition("\n") for part in text.split("\n## ")[1:])
    found = {title: BLOCK.findall(body) for title, _, body in parts}
    blocks = [block for each in found.values() for _, block in each]
    files = {match[1]: block for block in blocks if (match := FILE.match(block))}
    return found, files


def test_every_section_with_blocks_is_checked(sections):
    assert {title for title, blocks in sections[0].items() if blocks} == set(CHECKS)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("title", CHECKS)
def test_every_block_runs(tmp_path, monkeypatch, capsys, sections, title):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found, files = sections
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    names: dict[str, object] = {}
    try:
        for kind, text in found[title]:
            if FILE.match(text):
                continue
            if kind == "sh":
                run_commands(text)
            else:
                assert kind == "python"
                exec(text, names)
        CHECKS[title](capsys.readouterr().out)
    finally:
        sys.modules.pop("mine", None)
