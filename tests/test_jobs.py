"""Sweeps and seeds trained several at a time, each run by a process of its own."""

import os
import signal
import threading
import time

import pytest
from support.training_helpers import assert_same_state, one_line, timeless
from test_settings import FIELDS, invoke, written

from metasparse_ext.cli import jobs
from metasparse_ext.cli.runs import Planned
from metasparse_ext.training import Run, RunConfig, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_runs_beside_one_another_are_those_one_by_one(tmp_path):
    file = written(tmp_path / "sweep.toml", "[grid]", "options.inner_lr = [1e30, 0.01]")
    outs = tmp_path / "beside", tmp_path / "alone"
    beside, alone = (
        invoke("sweep", file, "--out", out, "--jobs", count)
        for out, count in zip(outs, (2, 1), strict=True)
    )
    assert beside.exit_code == alone.exit_code == 1, beside.output
    failed = "inner_lr=1e+30"
    assert f"{failed}: MAML: the loss of task 0 is inf" in beside.stdout
    assert "MAML: the loss of task 0 is inf" in (outs[0] / failed / "log.txt").read_text()
    log = (outs[0] / "inner_lr=0.01" / "log.txt").read_text()
    assert "from iteration 0" in log
    assert "Fatal" not in log
    assert "iteration 2: validation" in log
    assert "iteration 2: validation" not in beside.stdout
    runs = [Run(out / "inner_lr=0.01") for out in outs]
    assert timeless(runs[0]) == timeless(runs[1])
    assert_same_state(*(checkpoint.load(run.last_path).learner for run in runs))
    tables = [result.stdout[result.stdout.index("inner_lr   val") :] for result in (beside, alone)]
    rows = [[line.split()[:5] for line in table.splitlines()] for table in tables]
    assert [row for row in rows[0] if "mse" in row] == [row for row in rows[1] if "mse" in row]


def test_ctrl_c_saves_them_all(tmp_path):
    runs = [Run(tmp_path / "runs" / f"seed-{seed}") for seed in (0, 1)]
    file = written(tmp_path / "a.toml", iterations=10**6, validate_every=10**6)
    train = ("train", "--config", file, "--seeds", "0,1", "--out", tmp_path / "runs", "--jobs", 2)

    def press():
        while not all(run.started for run in runs):
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    stopped = invoke(*train)
    assert stopped.exit_code == 130, stopped.output
    assert stopped.stdout.count("stopped, saved: --resume goes on") == 2
    for run in runs:
        iteration = checkpoint.load(run.last_path).iteration
        assert f"stopped at iteration {iteration}, saved" in (run.folder / "log.txt").read_text()
    assert "already holds a run" in one_line(invoke(*train))


def test_a_process_whose_parent_is_gone_saves_and_ends(tmp_path):
    config = RunConfig(**{**FIELDS, "iterations": 10**6, "validate_every": 10**6})
    run = Run(tmp_path)
    job = jobs._started(Planned(run, config, {}), 0, 1, ())
    while not run.started:
        time.sleep(0.05)
    time.sleep(0.2)
    job.process.communicate()  # closes what the parent would
    assert job.process.returncode == 130
    iteration = checkpoint.load(run.last_path).iteration
    assert f"stopped at iteration {iteration}, saved" in (tmp_path / "log.txt").read_text()


def test_a_process_that_dies_is_a_run_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_COMMAND", "import sys; sys.exit(7)")
    file = written(tmp_path / "a.toml")
    result = invoke("train", "--config", file, "--seeds", "0,1", "--out", tmp_path, "--jobs", 2)
    assert result.exit_code == 1
    assert result.stdout.count("its process ended with exit code 7: see ") == 2


def test_cores_and_gpus_are_shared(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(jobs.torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(jobs.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    shares = [jobs._share("cuda", place, 3) for place in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "5", "4"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"2"}
    assert "CUDA_VISIBLE_DEVICES" not in jobs._share("cpu", 0, 3)


def test_processes_that_share_a_run_train_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = written(tmp_path / "a.toml")
    refused = invoke("train", "--config", file, "--seeds", "0,1", "--out", tmp_path, "--jobs", 2)
    assert "--jobs: expected none under torchrun" in one_line(refused)
