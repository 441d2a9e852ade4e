"""Two processes that share the tasks of a meta-batch train as one does."""

import subprocess
import sys

import pytest
import torch
from training_helpers import package_path, tiny_config

from metasparse_ext.data import Samples, TaskBatch
from metasparse_ext.training import Run, Trainer, checkpoint, metrics
from metasparse_ext.training.distributed import Workers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_shares_are_disjoint_and_complete():
    images, labels = torch.rand(6, 2, 1, 4, 4), torch.arange(12).view(6, 2)
    batch = TaskBatch(Samples(images, labels), Samples(images, labels))
    shares = [Workers(rank, 3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat([share.query.images for share in shares]), images)
    assert torch.equal(torch.cat([share.support.labels for share in shares]), labels)


def test_uneven_shares_are_refused():
    with pytest.raises(ValueError, match="a multiple of 3, got 4"):
        Workers(0, 3).require_shares(4)


def test_two_processes_train_as_one(tmp_path, tiny_root):
    # Plain descent: Adam would blow the rounding of gradients that are zero up to whole steps.
    config = tiny_config(tiny_root, optimiser="sgd", meta_lr=0.1)
    alone, shared = Run(tmp_path / "alone"), Run(tmp_path / "shared")
    Trainer(config, alone).fit()
    (tmp_path / "train.py").write_text(
        "import sys, torch\n"
        "from metasparse_ext.training import Run, RunConfig, Trainer\n"
        "from metasparse_ext.training.distributed import joined\n"
        "torch.set_num_threads(1)\n"
        "config = RunConfig.from_json(open(sys.argv[1]).read())\n"
        "with joined('cpu') as workers:\n"
        "    Trainer(config, Run(sys.argv[2]), workers=workers).fit()\n"
    )
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(tmp_path / "train.py", alone.config_path, shared.folder),
        ],
        env=package_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for one, two in zip(
        metrics.read(alone.metrics_path), metrics.read(shared.metrics_path), strict=True
    ):
        assert one["iteration"] == two["iteration"]
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    left, right = (checkpoint.load(run.last_path).learner for run in (alone, shared))
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)
