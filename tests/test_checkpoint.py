"""Checkpoints: whole or absent, safe to load, and enough to resume exactly."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from training_helpers import package_path, timeless, tiny_config

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.training import Checkpoint, CheckpointError, Run, Trainer, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def small_checkpoint(iteration: int) -> Checkpoint:
    return Checkpoint(
        config={"learner": "maml"},
        iteration=iteration,
        learner={"weight": torch.arange(1000.0)},
        optimizer={"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        best={"accuracy": 0.5},
        random_state=torch.get_rng_state(),
    )


def test_round_trip(tmp_path):
    saved = small_checkpoint(7)
    checkpoint.save(saved, tmp_path / "last.pt")
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert (loaded.iteration, loaded.config, loaded.best) == (7, saved.config, saved.best)
    assert loaded.optimizer == saved.optimizer
    assert torch.equal(loaded.learner["weight"], saved.learner["weight"])
    assert torch.equal(loaded.random_state, saved.random_state)
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(small_checkpoint(1), path)
    script = f"""
        import dataclasses, os, signal
        from pathlib import Path
        import torch
        from metasparse_ext.training import checkpoint

        def half_a_write(state, file):
            file.write(b"half a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        path = Path({str(path)!r})
        newer = dataclasses.replace(checkpoint.load(path), iteration=2)
        torch.save = half_a_write
        checkpoint.save(newer, path)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, env=package_path(), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert checkpoint.load(path).iteration == 1
    checkpoint.save(small_checkpoint(3), path)
    assert checkpoint.load(path).iteration == 3
    assert os.listdir(tmp_path) == ["last.pt"]


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match=r"last\.pt: there is no such checkpoint"):
        checkpoint.load(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"last\.pt: not a readable checkpoint"):
        checkpoint.load(path)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="format 1, got 99"):
        checkpoint.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"format": 1, "learner": Trap()}, tmp_path / "last.pt", pickle_module=pickle)
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "trapped").exists()


class StopAfter:
    """A reporter that presses Ctrl-C after some iterations."""

    def __init__(self, iteration):
        self.iteration = iteration

    def start(self, config, iteration):
        pass

    def step(self, record, done):
        if record["iteration"] == self.iteration:
            signal.raise_signal(signal.SIGINT)

    def validation(self, record, best):
        pass


def assert_same_state(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_state(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_state(one, other)
    else:
        assert left == right


@pytest.mark.parametrize("learner", sorted(LEARNERS))
@pytest.mark.parametrize(
    ("stop", "network"),
    [
        (2, {"backbone": "conv4"}),
        (3, {"backbone": "resnet12", "width": 2, "data": "cifar-fs"}),
        (5, {"backbone": "conv4"}),
    ],
    ids=["2-conv4", "3-resnet12", "5-conv4"],
)
def test_resume_is_exact(tmp_path, tiny_root, learner, stop, network):
    config = tiny_config(tiny_root, learner, **network)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    Trainer(config, whole).fit()
    assert Trainer(config, parts, reporter=StopAfter(stop)).fit().interrupted
    assert checkpoint.load(parts.last_path).iteration == stop
    assert not Trainer(config, parts).fit().interrupted

    assert timeless(parts) == timeless(whole)
    for name in ("last.pt", "best.pt"):
        assert (parts.folder / name).exists() == (whole.folder / name).exists()
        if (whole.folder / name).exists():
            left = checkpoint.load(whole.folder / name)
            right = checkpoint.load(parts.folder / name)
            left.elapsed = right.elapsed = 0.0
            assert_same_state(vars(left), vars(right))


def test_resume_drops_metrics_written_after_the_checkpoint(tmp_path, tiny_root):
    config = tiny_config(tiny_root)
    whole, crashed = Run(tmp_path / "whole"), Run(tmp_path / "crashed")
    Trainer(config, whole).fit()
    Trainer(config, crashed, reporter=StopAfter(4)).fit()
    with open(crashed.metrics_path, "a") as file:
        file.write('{"iteration": 5, "kind": "train", "loss": 0.0, "accuracy": 1.0}\n{"itera')
    Trainer(config, crashed).fit()
    assert timeless(crashed) == timeless(whole)


@pytest.mark.parametrize("moment", ["validation", "step"])
def test_resume_after_a_crash_is_exact(tmp_path, tiny_root, moment):
    config = tiny_config(tiny_root, save_every=3, iterations=8)
    whole, crashed = Run(tmp_path / "whole"), Run(tmp_path / "crashed")
    Trainer(config, whole).fit()
    reporter = StopAfter(100)

    def crash(record, *rest):
        if record["iteration"] == 6:
            raise SystemError

    setattr(reporter, moment, crash)
    with pytest.raises(SystemError):
        Trainer(config, crashed, reporter=reporter).fit()
    assert checkpoint.load(crashed.last_path).iteration == 3
    Trainer(config, crashed).fit()
    assert timeless(crashed) == timeless(whole)


def test_resume_refuses_another_configuration(tmp_path, tiny_root):
    run = Run(tmp_path / "run")
    Trainer(tiny_config(tiny_root), run, reporter=StopAfter(2)).fit()
    with pytest.raises(ValueError, match=r"was begun with shots = 1, got 2"):
        Trainer(tiny_config(tiny_root, shots=2), run)


def test_a_finished_run_can_be_lengthened(tmp_path, tiny_root):
    run, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    Trainer(tiny_config(tiny_root, iterations=3), run).fit()
    Trainer(tiny_config(tiny_root, iterations=6), run).fit()
    Trainer(tiny_config(tiny_root, iterations=6), whole).fit()
    assert timeless(run) == timeless(whole)
    assert run.config().iterations == 6
