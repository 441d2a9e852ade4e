"""Training with its meta-steps captured: as exact as without, and as safe."""

import contextlib
import json
import math

import pytest
import torch
from support.host import NothingOnTheHost
from support.training_helpers import tiny_config

from metasparse_ext._capture import unobserved
from metasparse_ext.algorithms import LEARNERS, Metrics
from metasparse_ext.data import Samples, TaskBatch, on_device, transfer
from metasparse_ext.training import (
    Run,
    Trainer,
    TrainingError,
    build,
    checkpoint,
    metrics,
    outer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TICKET = {"inner_lr": 0.1, "inner_steps": 2, "density": None, "rounds": 1}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def as_on_a_gpu(monkeypatch, fake_graph):
    """The CPU takes the place of the GPU: its optimizer, and a graph that is none."""
    monkeypatch.setattr(outer, "on_gpu", lambda config: True)


def steps(run):
    kept = ("iteration", "loss", "accuracy", "active", "gradient_norm")
    found = [r for r in metrics.read(run.metrics_path) if r["kind"] == "train"]
    return [{name: record[name] for name in kept} for record in found]


def same_weights(one, other):
    states = [checkpoint.load(run.last_path).learner for run in (one, other)]
    tensors = [
        {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        for state in states
    ]
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(value, tensors[1][name]) for name, value in tensors[0].items()
    )


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"schedule": "cosine"}, id="cosine schedule"),
        pytest.param({"clip_norm": 0.05}, id="clipped norm"),
        pytest.param({"clip_value": 1e-3, "log_every": 4}, id="clipped values"),
        pytest.param({"optimizer": "sgd", "schedule": "linear"}, id="sgd"),
        pytest.param({"learner": "metadock", "mask_lr": 1e-2}, id="metadock"),
        # Two trainings, each captured anew with an optimizer of its own.
        pytest.param({"learner": "meta-ticket", "options": TICKET}, id="meta-ticket"),
    ],
)
def test_a_captured_run_equals_an_eager_one(tmp_path, tiny_root, changes):
    runs = [Run(tmp_path / name) for name in ("eager", "captured")]
    for run in runs:
        captures = run is runs[1]
        trainer = Trainer(tiny_config(tiny_root, capture=captures, **changes), run)
        assert trainer.fit().iteration == 6 * trainer.stages.stages
        assert getattr(trainer.meta_step._run, "captured", False) is captures
    assert steps(runs[0]) == steps(runs[1])
    assert same_weights(*runs)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_an_optimizer_of_ones_own_is_not_captured(tmp_path, tiny_root):
    own = Trainer(tiny_config(tiny_root, optimizer="torch.optim:SGD"), Run(tmp_path / "own"))
    ours = Trainer(tiny_config(tiny_root, optimizer="sgd"), Run(tmp_path / "ours"))
    for trainer in (own, ours):
        trainer.fit()
    assert ours.meta_step.captures
    assert not own.meta_step.captures
    for one, other in zip(own.learner.parameters(), ours.learner.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    # Without a graph that stands still, the host looks at every step.
    own = Trainer(tiny_config(tiny_root, optimizer="torch.optim:SGD"), Run(tmp_path / "broken"))
    own.learner.model.head.weight.data.fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"is nan at inner step|is inf at inner step"):
        own.fit()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("stop", [2, 5], ids=["while warming up", "after the capture"])
@pytest.mark.parametrize("learner", ["maml", "metadock"])
def test_a_resumed_captured_run_goes_on_exactly(tmp_path, tiny_root, learner, stop):
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    # A ramp over the training is as long in the part as in the whole.
    config = build.resolved(tiny_config(tiny_root, learner, iterations=9))
    Trainer(config, whole).fit()
    Trainer(config.replace(iterations=stop), parts).fit()
    Trainer(config, parts).fit()
    assert steps(whole) == steps(parts)
    assert same_weights(whole, parts)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("log_every", [1, 100], ids=["seen when logged", "seen when saved"])
def test_a_captured_run_that_breaks_down_stops_and_loses_nothing(
    tmp_path, tiny_root, log_every, monkeypatch
):
    run = Run(tmp_path / "nonfinite")
    options = {"save_every": 100, "validate_every": 100, "log_every": log_every}
    trainer = Trainer(tiny_config(tiny_root, iterations=8, **options), run)
    trainer.batches = poisoned(trainer.batches, at=4)
    with pytest.raises(TrainingError, match=r"not finite after iteration 4.*last\.safetensors"):
        trainer.fit()
    saved = checkpoint.load(run.last_path)
    assert saved.iteration == int(saved.learner["iteration"]) == 0
    text = run.metrics_path.read_text().splitlines()
    assert all(math.isfinite(json.loads(line)["loss"]) for line in text)


def poisoned(batches, at):
    for number, batch in enumerate(batches):
        if number == at:
            batch.query.images.fill_(torch.nan)
        yield batch


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("clip", [{}, {"clip_norm": 0.1}, {"clip_value": 0.1}], ids=str)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_nothing_in_a_training_step_needs_the_host(tmp_path, tiny_root, optimizer, clip):
    trainer = Trainer(tiny_config(tiny_root, optimizer=optimizer, **clip), Run(tmp_path))
    batches = [next(trainer.batches) for _ in range(2)]
    for batch in batches:
        with unobserved(), NothingOnTheHost("cpu"):
            trainer.meta_step._step(batch)


def test_nor_do_the_metrics_of_several_data_sets():
    accuracy = torch.tensor([0.5, 1.0, 0.25])
    found = Metrics(accuracy, accuracy, accuracy, torch.full((3,), torch.nan))
    origin = torch.tensor([0, 1, 0])
    with NothingOnTheHost("cpu"):
        sums = metrics.totals(found, origin, ("one", "two", "none"))
    means = metrics.means(sums)
    assert means["accuracy/one"] == 0.375
    assert means["accuracy/two"] == 1
    assert not {"accuracy/none", "support_loss"} & means.keys()


def test_on_the_cpu_nothing_is_captured(tmp_path, tiny_root):
    trainer = Trainer(tiny_config(tiny_root), Run(tmp_path))
    assert trainer.meta_step._run == trainer.meta_step._step


def numbered(count, drawn):
    """Batches that hold their number, and a list of those that were drawn."""
    for i in range(count):
        drawn.append(i)
        samples = Samples(torch.full((2, 1, 1, 2, 2), float(i)), torch.full((2, 1), i))
        yield TaskBatch(samples, samples)


def test_on_the_cpu_batches_pass_through_one_by_one():
    drawn = []
    batches = on_device(numbered(3, drawn), "cpu")
    for i in range(3):
        assert next(batches).query.labels[0, 0] == i
        assert drawn == list(range(i + 1))
    assert list(batches) == []


@pytest.mark.cuda
@needs_cuda
def test_on_a_gpu_batches_arrive_whole_and_in_order():
    for count in (0, 1, 5):
        drawn = []
        for i, batch in enumerate(on_device(numbered(count, drawn), "cuda")):
            assert drawn == list(range(min(i + 2, count)))
            for tensor in (*batch.support, *batch.query):
                assert tensor.is_cuda
                assert (tensor == i).all()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.usefixtures("deterministic_cudnn")
@pytest.mark.parametrize("learner", [name for name in LEARNERS if name != "meta-ticket"])
def test_training_on_a_gpu_captures_and_resumes_exactly(tmp_path, tiny_root, learner):
    # A ramp over the training is as long in the part as in the whole.
    config = build.resolved(tiny_config(tiny_root, learner, device="cuda", iterations=8))
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    trainer = Trainer(config, whole)
    trainer.fit()
    assert trainer.meta_step._run.reason is None
    assert trainer.meta_step._run.captured
    Trainer(config.replace(iterations=5), parts).fit()
    Trainer(config, parts).fit()
    assert steps(whole) == steps(parts)
    assert same_weights(whole, parts)


def test_a_batch_keeps_its_memory_until_it_was_used(monkeypatch):
    """Later copies wait for what the consumer has launched; freeing asks nothing of the device."""
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            log.append(f"{self.name} records")
            return self.name

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    consumer = Stream("consumer")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: consumer)
    monkeypatch.setattr(TaskBatch, "pin_memory", lambda self: self)
    monkeypatch.setattr(TaskBatch, "to", lambda self, *args, **options: self)
    images, labels = torch.rand(1, 2, 1, 4, 4), torch.zeros(1, 2, dtype=torch.int64)
    batch = TaskBatch(Samples(images, labels), Samples(images, labels))
    sent = transfer._overlapped([batch] * 3, torch.device("cuda"))
    while next(sent, None) is not None:
        log.append("step")
    copy, arrive = "copies records", "consumer waits for copies"
    free = ["consumer records", "copies waits for consumer"]
    assert log == [copy, copy, arrive, "step", *free, copy, arrive, "step", *free, arrive, "step"]
