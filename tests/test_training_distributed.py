"""Processes that share the tasks of a meta-batch train as one does."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import own_parts
from support.training_helpers import package_path, tiny_config

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.training import Run, Trainer, checkpoint, distributed, metrics
from metasparse_ext.training.distributed import Workers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shares_are_disjoint_and_complete():
    images, labels = torch.rand(7, 2, 1, 4, 4), torch.arange(14).view(7, 2)
    batch = TaskBatch(Samples(images, labels), Samples(images, labels))
    shares = [Workers(rank, 3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat([share.query.images for share in shares]), images)
    assert torch.equal(torch.cat([share.support.labels for share in shares]), labels)


def test_shares_may_be_uneven():
    assert [Workers(rank, 3).tasks(4) for rank in range(3)] == [1, 1, 2]
    with pytest.raises(ValueError, match=r"expected tasks to be at least 3, .*, got 2"):
        Workers(0, 3).require_shares(2)


OWN = {"data": "regression", "model": "line", "loss": "squared"}


def cases(root):
    """One training of every learner, and some that are special; 4 tasks are 1, 1 and 2 of three."""
    # Plain descent: Adam would blow the rounding of gradients that are zero up to whole steps.
    plain = {"optimizer": "sgd", "meta_lr": 0.1, "tasks": 4, "iterations": 2}
    plain |= {"validate_every": 2, "validation_tasks": 2}
    pruned = {"rounds": 1, "inner_lr": 0.1, "inner_steps": 1, "rewind": 1}
    both = {"data": "omniglot+glyphs", "image_size": 16}
    special = {
        "meta-ticket": {"options": pruned, "iterations": 3},
        "multi-maml": both,
        # More steps of this rate are so steep that rounding shows.
        "cavia": {"options": {"inner_lr": 0.1, "inner_steps": 1}},
        "metadock": {"meta_lr": 0.01},
    }
    learners = {
        name: tiny_config(root, name, **{**plain, **special.get(name, {})}) for name in LEARNERS
    }
    maml = learners["maml"]
    named = {part: f"support.own_parts:{name}" for part, name in OWN.items()}
    own = maml.replace(**named, metric="mae")
    return {
        **learners,
        "mixture": maml.replace(**both),
        # In one iteration, the tasks of the second process alone are not finite.
        "skipped": maml.replace(on_nonfinite="skip"),
        "memory": maml.replace(memory="100GiB"),
        "augmented": maml.replace(augment="padding=2,flip"),
        # Two processes begin it, three go on.
        "resumed": own.replace(iterations=4),
        "own": own,
    }


# Three have every learner; two what is special, and those that differ most.
NAMES = {
    2: ["maml", "memory", "meta-ticket", "own", "reptile", "resumed", "skipped"],
    3: sorted({*LEARNERS, "augmented", "mixture", "resumed"}),
}


SCRIPT = """
import os, sys, torch
from metasparse_ext.training import Run, RunConfig, Trainer
from metasparse_ext.training.distributed import joined
torch.set_num_threads(1)
with joined("cpu") as workers:
    for config, folder in zip(sys.argv[1::2], sys.argv[2::2]):
        config = RunConfig.from_json(open(config).read())
        if folder.endswith("resumed") and workers.size == 2:
            config = config.replace(iterations=2)
        trainer = Trainer(config, Run(folder), workers=workers, reporter=None)
        if config.on_nonfinite == "skip" and workers.rank == 1:
            trainer.batches = poisoned(trainer.batches)
        trainer.fit()
"""


def poisoned(batches):
    for number, batch in enumerate(batches):
        if number == 1:
            batch.query.images.fill_(float("nan"))
        yield batch


def torchrun(*arguments, size, **environment):
    """The end of a program under torchrun, on the CPU."""
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return subprocess.run(
        [*command, f"--nproc-per-node={size}", *map(str, arguments)],
        env={**package_path(), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def alone_and_shared(tiny_root, tmp_path_factory, one_thread):
    """Each case trained by one process, by two and by three: starting takes the longest."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "train.py").write_text(inspect.getsource(poisoned) + SCRIPT)
    shutil.copytree(Path(own_parts.__file__).parent, folder / "support")
    every = cases(tiny_root)
    runs = {1: {name: Run(folder / "1" / name) for name in every}}
    for name, config in every.items():
        trainer = Trainer(config, runs[1][name], reporter=None)
        if name == "skipped":
            trainer.batches = poisoned(trainer.batches)
        trainer.fit()
    for size, names in NAMES.items():
        runs[size] = {name: Run(folder / str(size) / name) for name in names}
        runs[size]["resumed"] = Run(folder / "resumed")
        work = [
            path
            for name, run in runs[size].items()
            for path in (runs[1][name].config_path, run.folder)
        ]
        ended = torchrun(folder / "train.py", *work, size=size)
        assert ended.returncode == 0, ended.stderr
    return runs


@pytest.mark.parametrize(
    ("size", "case"), [(size, case) for size, names in NAMES.items() for case in names]
)
def test_several_processes_train_as_one(alone_and_shared, size, case):
    alone, shared = (alone_and_shared[number][case] for number in (1, size))
    records = [metrics.read(run.metrics_path) for run in (alone, shared)]
    for one, two in zip(*records, strict=True):
        assert (one["iteration"], one["kind"]) == (two["iteration"], two["kind"])
        assert one.get("skipped") == two.get("skipped")
        for name in set(one) & {"loss", "mae", "accuracy/glyphs", "density", "search_macs"}:
            assert one[name] == pytest.approx(two[name], rel=1e-4)
    assert checkpoint.load(shared.last_path).skipped["count"] == (case == "skipped")
    left, right = (checkpoint.load(run.last_path).learner for run in (alone, shared))
    # Of a bias that a batch norm takes out again, Reptile's inner Adam makes whole steps of noise.
    for name in (name for name in left if not (case == "reptile" and name.endswith("conv.bias"))):
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)


def test_a_process_that_dies_is_started_again_and_goes_on(tmp_path):
    """torchrun starts the processes anew, and they go on from the last checkpoint."""
    shutil.copytree(Path(own_parts.__file__).parent, tmp_path / "support")
    part = "support.own_parts"
    flags = f"--data {part}:regression --model {part}:line --loss mse --tasks 3 --optimizer sgd"
    flags += " --iterations 6 --validate-every 3 --validation-tasks 3 --save-every 1"
    once = flags.replace("regression", "deadly")
    train = ("-m", "metasparse_ext", "train", "maml", *once.split(), "--out", tmp_path / "run")
    path = f"{package_path()['PYTHONPATH']}{os.pathsep}{tmp_path}"
    mark = tmp_path / "died"
    ended = torchrun("--max-restarts=1", *train, size=2, PYTHONPATH=path, DIES_ONCE=str(mark))
    assert ended.returncode == 0, ended.stderr
    assert mark.exists()
    assert "from iteration 3" in ended.stdout
    run, alone = Run(tmp_path / "run"), Run(tmp_path / "alone")
    config = run.config().replace(data=f"{part}:regression")
    Trainer(config, alone, reporter=None).fit()
    records = [metrics.read(each.metrics_path) for each in (run, alone)]
    assert [r["iteration"] for r in records[0]] == [r["iteration"] for r in records[1]]
    left, right = (checkpoint.load(each.last_path).learner for each in (run, alone))
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)


# Which GPU is whose, of processes that torchrun started.


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs on this machine, and what this process takes of them."""
    taken = []
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed.torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(distributed.dist, "init_process_group", taken.append)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 4)
    for name, value in {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    return taken


def test_each_process_takes_the_gpu_of_its_local_rank(gpus):
    with distributed.joined("cuda") as workers:
        assert (workers.rank, workers.size) == (3, 4)
    assert gpus == [1, "nccl"]


def test_processes_on_the_cpu_take_no_gpu(gpus):
    with distributed.joined("cpu"):
        assert gpus == ["gloo"]


@pytest.mark.parametrize(
    ("device", "rank", "sentence"),
    [
        ("cuda:0", 1, "device: expected 'cuda' for 2 processes, .* got 'cuda:0'"),
        ("cuda", 2, "device: expected a GPU for each of 2 processes, got 2"),
    ],
)
def test_a_gpu_that_is_not_its_own_is_refused(gpus, monkeypatch, device, rank, sentence):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    with pytest.raises(ValueError, match=sentence), distributed.joined(device):
        pass
    assert gpus == []
