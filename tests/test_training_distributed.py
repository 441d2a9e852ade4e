"""Two processes that share the tasks of a meta-batch train as one does."""

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import own_parts
from support.training_helpers import package_path, tiny_config

from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.training import Run, Trainer, checkpoint, distributed, metrics
from metasparse_ext.training.distributed import Workers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shares_are_disjoint_and_complete():
    images, labels = torch.rand(6, 2, 1, 4, 4), torch.arange(12).view(6, 2)
    batch = TaskBatch(Samples(images, labels), Samples(images, labels))
    shares = [Workers(rank, 3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat([share.query.images for share in shares]), images)
    assert torch.equal(torch.cat([share.support.labels for share in shares]), labels)


def test_uneven_shares_are_refused():
    with pytest.raises(ValueError, match=r"expected tasks to be a multiple of 3, .*, got 4"):
        Workers(0, 3).require_shares(4)


OWN = {"data": "regression", "model": "line", "loss": "squared"}


def cases(root):
    # Plain descent: Adam would blow the rounding of gradients that are zero up to whole steps.
    plain = tiny_config(root, optimizer="sgd", meta_lr=0.1)
    pruned = {"rounds": 1, "inner_lr": 0.1, "inner_steps": 1, "rewind": 1}
    return {
        "maml": plain,
        "mixture": plain.replace(data="omniglot+glyphs", image_size=16, tasks=4, iterations=2),
        "distributions": plain.replace(
            learner="multi-maml", data="omniglot+glyphs", image_size=16, tasks=4, iterations=2
        ),
        "reptile": plain.replace(learner="reptile", options={"inner_steps": 2}, iterations=2),
        # In one iteration, the tasks of the second process alone are not finite.
        "skipped": plain.replace(on_nonfinite="skip"),
        "ticket": plain.replace(learner="meta-ticket", options=pruned, iterations=3),
        "memory": plain.replace(tasks=4, iterations=2, memory="100GiB"),
        "own": plain.replace(
            **{part: f"support.own_parts:{name}" for part, name in OWN.items()}, metric="mae"
        ),
    }


SCRIPT = """
import sys, torch
from metasparse_ext.training import Run, RunConfig, Trainer
from metasparse_ext.training.distributed import joined
torch.set_num_threads(1)
with joined("cpu") as workers:
    for config, folder in zip(sys.argv[1::2], sys.argv[2::2]):
        trainer = Trainer(
            RunConfig.from_json(open(config).read()), Run(folder), workers=workers
        )
        if trainer.config.on_nonfinite == "skip" and workers.rank == 1:
            trainer.batches = poisoned(trainer.batches)
        trainer.fit()
"""


def poisoned(batches):
    for number, batch in enumerate(batches):
        if number == 2:
            batch.query.images.fill_(float("nan"))
        yield batch


@pytest.fixture(scope="module")
def alone_and_shared(tiny_root, tmp_path_factory, one_thread):
    """Each case trained by one process, and by two: starting processes takes the longest."""
    folder = tmp_path_factory.mktemp("distributed")
    runs = {name: (Run(folder / name), Run(folder / f"{name}-2")) for name in cases(tiny_root)}
    for name, config in cases(tiny_root).items():
        trainer = Trainer(config, runs[name][0])
        if name == "skipped":
            trainer.batches = poisoned(trainer.batches)
        trainer.fit()
    (folder / "train.py").write_text(inspect.getsource(poisoned) + SCRIPT)
    shutil.copytree(Path(own_parts.__file__).parent, folder / "support")
    work = [part for alone, shared in runs.values() for part in (alone.config_path, shared.folder)]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(folder / "train.py", *work),
        ],
        env=package_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return runs


@pytest.mark.parametrize(
    "case", ["maml", "mixture", "distributions", "reptile", "skipped", "ticket", "memory", "own"]
)
def test_two_processes_train_as_one(alone_and_shared, case):
    alone, shared = alone_and_shared[case]
    for one, two in zip(
        metrics.read(alone.metrics_path), metrics.read(shared.metrics_path), strict=True
    ):
        assert (one["iteration"], one["kind"]) == (two["iteration"], two["kind"])
        assert one.get("skipped") == two.get("skipped")
        for name in set(one) & {"loss", "mae", "accuracy/glyphs", "density", "search_macs"}:
            assert one[name] == pytest.approx(two[name], rel=1e-4)
    assert checkpoint.load(shared.last_path).skipped["count"] == (case == "skipped")
    left, right = (checkpoint.load(run.last_path).learner for run in (alone, shared))
    # Of a bias that a batch norm takes out again, Reptile's inner Adam makes whole steps of noise.
    for name in (name for name in left if not (case == "reptile" and name.endswith("conv.bias"))):
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
