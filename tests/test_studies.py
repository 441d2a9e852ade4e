"""The studies: their settings build, a case is run once, and tables come from what it kept."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.training_helpers import package_path, tiny_config

from benchmarks import studies, study, study_tables
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.training import Run, build

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = [(name, case) for name, make in study.ALL.items() for case in make(studies.Budget())]


@pytest.mark.parametrize("name", study.ALL)
def test_every_case_builds_its_learner(name):
    built = set()
    for case in (case for study_name, case in ALL if study_name == name):
        for config in case.stages:
            key = config.learner, str(config.options), config.model
            if key not in built:
                assert build.learner(config.replace(width=4), (1, 32, 32)).extra_repr()
                built.add(key)
    names = [case.name for study_name, case in ALL if study_name == name]
    assert 2 <= len(names) == len(set(names))


def test_every_learner_is_in_the_study():
    named = {case.labels["learner"] for case in studies.learners(studies.Budget())}
    alone = {LEARNERS[name] for name in LEARNERS if name != "multi-maml"}
    assert {LEARNERS[name] for name in named} == alone


def test_budgets():
    config = studies.config("maml")
    assert studies.Budget().of(config) is config
    assert studies.Budget(seconds=10).of(config, 0.5).max_seconds == 5
    assert studies.Budget(iterations=10).of(config, 0.5).iterations == 5


@pytest.fixture
def here(monkeypatch):
    """Trains in this process, and counts how often."""
    trained = []

    def run(config, run):
        trained.append(run.folder.name)
        return study.train_here(config, run)

    monkeypatch.setattr(study, "_in_a_process", run)
    return trained


def test_a_case_is_run_once_and_again_when_its_settings_change(tmp_path, tiny_root, here):
    stages = tiny_config(tiny_root), tiny_config(tiny_root, "metadock", iterations=3)
    case = studies.Case("pruned", stages, {"task": "tiny", "learner": "metadock"})
    for _ in range(2):
        study.run_case(case, tmp_path / "runs", tmp_path / "results")
    assert here == ["0", "1"]
    done = study.measured(tmp_path / "results" / "pruned")
    assert done.stages[1]["init_from"] == str(tmp_path / "runs" / "pruned" / "0")
    assert done.last["iteration"] == 3
    assert done.seconds > 0
    names = {path.name for path in (tmp_path / "results" / "pruned").iterdir()}
    assert names == {*study.KEPT, "measured.json"}
    other = studies.Case("pruned", (stages[0], stages[1].replace(iterations=2)), case.labels)
    study.run_case(other, tmp_path / "runs", tmp_path / "results")
    assert study.measured(tmp_path / "results" / "pruned").last["iteration"] == 2


def test_cases_share_a_parent_which_is_trained_once(tmp_path, tiny_root, here):
    parent = studies.Case("dense", (tiny_config(tiny_root, iterations=1),), {})
    pruned = tiny_config(tiny_root, "metadock", iterations=1)
    children = [studies.Case(name, (pruned,), {}, parent) for name in ("half", "quarter")]
    for child in children:
        study.run_case(child, tmp_path / "runs", tmp_path / "results")
    assert len(here) == 3
    start = str(tmp_path / "runs" / "dense" / "0")
    assert study.measured(tmp_path / "results" / "half").stages[0]["init_from"] == start
    longer = replace(parent, stages=(parent.stages[0].replace(iterations=2),))
    study.run_case(longer, tmp_path / "runs", tmp_path / "results")
    study.run_case(longer, tmp_path / "runs", tmp_path / "results")
    assert len(here) == 4


def test_tables_show_what_the_cases_kept(tmp_path, tiny_root, here, monkeypatch):
    monkeypatch.setattr(study_tables, "RESULTS", tmp_path)
    makers = study_tables.learners, study_tables.tickets, study_tables.mixtures
    assert [list(make()) for make in makers] == [[], [], []]

    def run(name, study_name, labels, learner, **fields):
        made = tiny_config(tiny_root, learner, iterations=2, **fields)
        case = studies.Case(name, (made,), labels)
        study.run_case(case, tmp_path / "runs" / study_name, tmp_path / study_name)

    run("maml", "learners", {"task": "tiny", "learner": "maml"}, "maml", max_seconds=0.01)
    both = {"data": "omniglot+glyphs", "image_size": 16, "tasks": 4}
    run("maml-0", "mixtures", {"learner": "maml", "seed": "0"}, "maml", **both)
    run("dense", "tickets", {"backbone": "conv4", "ticket": "dense"}, "maml")
    for search in ("iterative", "early"):
        options = {"search": search, "rounds": 2 if search == "iterative" else 1}
        options |= {"inner_steps": 1, "check_every": 1, "window": 2, "threshold": 1.0}
        labels = {"backbone": "conv4", "ticket": search}
        run(search, "tickets", labels, "meta-ticket", options=options)
    (learners,), (tickets,), (mixtures,) = (list(make()) for make in makers)
    assert "0.01 s of processor time" in learners
    assert "| `maml` | " in learners
    assert "omniglot | glyphs |" in mixtures
    rows = [line.split(" | ") for line in tickets.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| dense", "| iterative", "| early"]
    assert rows[3][5] == "100.0 %"
    assert 0 < float(rows[4][5].split()[0]) < 100


KILLED = """
import threading, time
from multiprocessing import active_children
from pathlib import Path
from benchmarks.study import Case, run_case
from metasparse_ext.training import RunConfig

def tell():
    while not active_children():
        time.sleep(0.05)
    print(active_children()[0].pid, flush=True)

threading.Thread(target=tell).start()
folder = Path({folder!r})
run_case(Case("one", (RunConfig.from_json({config!r}),), {{}}), folder / "runs", folder / "results")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_killed_study_trains_saves_and_ends(tmp_path, tiny_root):
    config = tiny_config(tiny_root, iterations=1_000_000, validate_every=1_000_000, log_every=1)
    program = KILLED.format(folder=str(tmp_path), config=config.to_json())
    command = [sys.executable, "-c", program]
    environment = {**package_path(), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    run = Run(tmp_path / "runs" / "one" / "0")
    _wait_for(run.config_path.exists)
    time.sleep(1)
    process.kill()
    process.wait()
    _wait_for(lambda: not _is_at_work(child))
    assert run.last_path.exists()


def _is_at_work(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
