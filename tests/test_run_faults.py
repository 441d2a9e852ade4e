"""Runs whose writes fail, or whose process is killed, at any of them: they resume exactly."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from support.training_helpers import package_path, timeless, tiny_config

from build_backend.isa import supported
from metasparse_ext import _atomic as atomic
from metasparse_ext import _library
from metasparse_ext.training import (
    CheckpointError,
    Run,
    RunInUseError,
    Trainer,
    checkpoint,
    evaluate_run,
)
from metasparse_ext.training.run import RunLock

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(root):
    return tiny_config(root, iterations=2, save_every=1, validate_every=2, validation_tasks=2)


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory, one_thread):
    """A run that nothing has happened to."""
    run = Run(tmp_path_factory.mktemp("faults") / "whole")
    Trainer(config_of(tiny_root), run).fit()
    return run


def assert_same_end(run, whole):
    assert timeless(run) == timeless(whole)
    for path in ("last_path", "best_path"):
        left, right = (checkpoint.read(getattr(each, path)) for each in (run, whole))
        assert left.iteration == right.iteration
        for name, value in right.learner.items():
            assert torch.equal(left.learner[name], value), name
        for number, state in right.optimizer["state"].items():
            for name, value in state.items():
                assert torch.equal(left.optimizer["state"][number][name], value), name
    assert not list(run.folder.glob(".*.tmp"))
    assert run.config() == whole.config()


class Fault:
    """Makes the k-th change of a file fail, as a full or a broken disk does."""

    def __init__(self, at, number=errno.ENOSPC):
        self.at, self.number, self.calls = at, number, 0

    def __call__(self, call, *arguments):
        self.calls += 1
        if self.calls == self.at:
            if call is os.write:
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise OSError(self.number, os.strerror(self.number))
        return call(*arguments)


def changes_of_a_run(root, folder, monkeypatch):
    """How many changes of files a run makes."""
    counter = Fault(at=0)
    monkeypatch.setattr(atomic, "_system", counter)
    Trainer(config_of(root), Run(folder)).fit()
    monkeypatch.undo()
    return counter.calls


def test_every_write_may_fail(tmp_path, tiny_root, whole, monkeypatch):
    config = config_of(tiny_root)
    count = changes_of_a_run(tiny_root, tmp_path / "counted", monkeypatch)
    assert count > 30
    for at in range(1, count + 1):
        run = Run(tmp_path / str(at))
        number = (errno.ENOSPC, errno.EIO)[at % 2]
        monkeypatch.setattr(atomic, "_system", Fault(at, number))
        with pytest.raises(OSError, match=os.strerror(number)) as failed:
            Trainer(config, run).fit()
        monkeypatch.undo()
        assert failed.value.filename
        assert not list(run.folder.glob(".*.tmp"))
        Trainer(config, run).fit()
        assert_same_end(run, whole)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from support.training_helpers import tiny_config
from metasparse_ext import _atomic as atomic
from metasparse_ext.training import Run, Trainer
torch.set_num_threads(1)
root, folder = map(Path, sys.argv[1:])
config = tiny_config(root, iterations=2, save_every=1, validate_every=2, validation_tasks=2)

class Kill:
    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, call, *arguments):
        self.calls += 1
        if self.calls == self.at:
            if call is os.write:
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

# What is loaded and built on the way is then there in every process that is forked.
Trainer(config, Run(folder / "whole"), reporter=None).fit()
at, killed = 0, True
while killed:
    at += 1
    child = os.fork()
    if child == 0:
        atomic._system = Kill(at)
        Trainer(config, Run(folder / str(at)), reporter=None).fit()
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(at)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
def test_the_process_may_be_killed_at_every_write(tmp_path, tiny_root, whole):
    environment = package_path()
    environment["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_root), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    count = int(ended.stdout)
    assert count > 30
    for at in range(1, count):
        run = Run(tmp_path / str(at))
        Trainer(config_of(tiny_root), run).fit()
        assert_same_end(run, whole)


def test_an_evaluation_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path, tiny_root, monkeypatch
):
    run = Run(tmp_path / "run")
    Trainer(config_of(tiny_root), run).fit()
    evaluate_run(run)
    before = run.evaluation_path("test").read_bytes()
    monkeypatch.setattr(atomic, "_system", Fault(at=2))
    with pytest.raises(OSError, match="No space left"):
        evaluate_run(run)
    assert run.evaluation_path("test").read_bytes() == before
    assert not list(run.folder.glob(".*.tmp"))


def test_a_second_training_in_a_folder_is_refused(tmp_path, tiny_root):
    run, config = Run(tmp_path / "run"), config_of(tiny_root)
    first = Trainer(config, run)
    with pytest.raises(RunInUseError, match="run: another process is training in this folder"):
        Trainer(config, Run(run.folder))
    with pytest.raises(RunInUseError, match="run: another process is training in this folder"):
        run.forget()
    first.fit()
    assert Trainer(config, Run(run.folder)).fit().iteration == 2


def test_a_training_that_fails_lets_go_of_its_folder(tmp_path, tiny_root):
    run, config = Run(tmp_path / "run"), config_of(tiny_root)
    trainer = Trainer(config, run)
    trainer.batches = iter([])
    with pytest.raises(StopIteration):
        trainer.fit()
    assert Trainer(config, run).fit().iteration == 2
    with pytest.raises(ValueError, match="was begun with shots"):
        Trainer(config.replace(shots=2), run)


def test_a_run_that_did_no_iteration_begins_anew(tmp_path, tiny_root, caplog):
    run, config = Run(tmp_path / "run"), config_of(tiny_root)
    Trainer(config, run)._lock.release()
    assert run.untrained
    other = config.replace(shots=2, width=3)
    assert Trainer(other, run).fit().iteration == 2
    assert "run had done no iteration: it begins anew, with other shots and width" in caplog.text
    assert (run.config().shots, run.config().width) == (2, 3)
    assert not run.untrained


HOLDER = """
import sys, time
from pathlib import Path
from metasparse_ext.training.run import RunLock
lock = RunLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
time.sleep(60)
"""


def test_the_lock_is_held_against_other_processes_and_dies_with_its_own(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        env=package_path(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "True\n"
        lock = RunLock(path)
        assert not lock.acquire()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert lock.acquire()
    lock.release()


def test_what_a_killed_process_left_is_cleaned(tmp_path, tiny_root):
    run = Run(tmp_path / "run")
    Trainer(config_of(tiny_root), run).fit()
    left = run.folder / ".last.safetensors.12345.tmp"
    left.write_bytes(b"half a checkpoint")
    evaluated = run.folder / ".evaluation-test-3tasks.json.12345.tmp"
    evaluated.write_bytes(b"half an evaluation")
    other = run.folder / ".notes.tmp"
    other.write_bytes(b"of the user")
    Trainer(config_of(tiny_root).replace(iterations=3), run).fit()
    assert not left.exists()
    assert not evaluated.exists()
    assert other.exists()


def test_a_best_checkpoint_that_the_last_one_knows_nothing_of_goes(tmp_path, tiny_root):
    run, config = Run(tmp_path / "run"), config_of(tiny_root).replace(validate_every=1)
    Trainer(config.replace(iterations=1), run).fit()
    saved = checkpoint.load(run.best_path)
    assert saved.iteration == 1
    saved.iteration = 9
    checkpoint.save(saved, run.best_path)
    Trainer(config, run)
    assert checkpoint.read(run.best_path).iteration == 1
    assert not checkpoint.previous(run.best_path).exists()


def test_a_best_checkpoint_that_is_damaged_is_chosen_anew(tmp_path, tiny_root, caplog):
    run, config = Run(tmp_path / "run"), config_of(tiny_root).replace(validate_every=1)
    Trainer(config.replace(iterations=1), run).fit()
    run.best_path.write_bytes(b"damaged")
    assert Trainer(config, run).fit().best["iteration"] == 2
    assert f"{run.best_path}: the best checkpoint, of iteration 1, is lost" in caplog.text
    assert checkpoint.read(run.best_path).iteration == 2


def test_a_best_checkpoint_of_another_run_is_not_taken(tmp_path, tiny_root, caplog):
    """Its state fits the network, and its iteration is that of the run's own."""
    config = config_of(tiny_root).replace(validate_every=1, iterations=1)
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    Trainer(config, run).fit()
    Trainer(config.replace(seed=7), other).fit()
    shutil.copy(other.best_path, run.best_path)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this run: .*seed = 7, got 0"):
        evaluate_run(run)
    assert Trainer(config.replace(iterations=2), run).fit().best["iteration"] == 2
    assert f"{run.best_path}: the best checkpoint, of iteration 1, is lost" in caplog.text


def test_a_run_whose_last_checkpoints_are_gone_is_not_begun_anew(tmp_path, tiny_root):
    run, config = Run(tmp_path / "run"), config_of(tiny_root)
    Trainer(config, run).fit()
    for path in (run.last_path, checkpoint.previous(run.last_path)):
        path.unlink()
        path.symlink_to(tmp_path / "gone")
    kept = {path: path.read_bytes() for path in (run.metrics_path, run.best_path)}
    message = r"run: there is no last\.safetensors to go on from, beside best\.safetensors"
    with pytest.raises(CheckpointError, match=message):
        Trainer(config, run)
    assert all(path.read_bytes() == data for path, data in kept.items())
    run.forget()
    assert Trainer(config, run).fit().iteration == 2


def test_the_whole_one_of_two_checkpoints_outlives_every_kill(tmp_path, tiny_root, monkeypatch):
    """A damaged last checkpoint never takes the place of the whole one before it."""
    run, config = Run(tmp_path / "run"), config_of(tiny_root)
    Trainer(config, run).fit()
    run.last_path.write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    counter = Fault(at=0)
    monkeypatch.setattr(atomic, "_system", counter)
    Trainer(config.replace(iterations=3), run).fit()
    for at in range(1, counter.calls + 1):
        shutil.rmtree(run.folder)
        run.folder.mkdir()
        for name, data in before.items():
            (run.folder / name).write_bytes(data)
        monkeypatch.setattr(atomic, "_system", Fault(at))
        with pytest.raises(OSError, match="No space left"):
            Trainer(config.replace(iterations=3), run).fit()
        assert checkpoint.load(run.last_path).iteration


def test_another_machine_is_named(tmp_path, tiny_root, caplog):
    run = Run(tmp_path / "run")
    Trainer(config_of(tiny_root), run).fit()
    saved = checkpoint.load(run.last_path)
    saved.platform |= {"threads": 64, "instruction set": "sse9"}
    checkpoint.save(saved, run.last_path)
    Trainer(config_of(tiny_root), run)
    assert "goes on with another threads: 1, it was 64" in caplog.text
    assert "another instruction set: " in caplog.text
    assert "it was sse9" in caplog.text
    assert "torch" not in caplog.text


RESUMES = """
import sys, torch
import metasparse_ext as ms
from metasparse_ext.training import Run, Trainer
torch.set_num_threads(2)
run = Run(sys.argv[1])
with ms.backend("direct"):
    Trainer(run.config().replace(iterations=2), run).fit()
"""


@pytest.mark.skipif(_library.problem is not None, reason="without the library there is one backend")
@pytest.mark.skipif(len(supported()) == 1, reason="this CPU has one of the instruction sets alone")
def test_a_run_that_goes_on_elsewhere_says_what_is_other(tmp_path, tiny_root):
    """Another instruction set, number of threads and backend, each by its name."""
    run, config = Run(tmp_path / "run"), config_of(tiny_root)
    Trainer(config.replace(iterations=1, validate_every=1), run).fit()
    was = checkpoint.load(run.last_path).platform
    other = next(isa for isa in supported() if isa != was["instruction set"])
    result = subprocess.run(
        [sys.executable, "-c", RESUMES, str(run.folder)],
        env=package_path() | {"METASPARSE_CPU_ISA": other},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name, value in (("instruction set", other), ("threads", 2), ("CPU backend", "direct")):
        said = f"goes on with another {name}: {value}, it was {was[name]}"
        assert said in result.stderr
    now = checkpoint.load(run.last_path).platform
    assert (now["instruction set"], now["threads"], now["CPU backend"]) == (other, 2, "direct")
