"""Checkpoints: whole or absent, checked, safe to load, and enough to resume exactly."""

import hashlib
import json
import os
import random
import struct

import pytest
import safetensors.torch
import torch
from support.training_helpers import StopAfter, assert_same_state, timeless, tiny_config

from metasparse_ext import _sealed
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.training import Checkpoint, CheckpointError, Run, Trainer, build, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def small_checkpoint(iteration: int) -> Checkpoint:
    return Checkpoint(
        config={"learner": "maml", "options": {"rates": [0.4, 0.01]}},
        iteration=iteration,
        learner={"weight": torch.arange(40.0), "count": torch.tensor(3), "mask": torch.ones(2) > 0},
        optimizer={
            "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.rand(2, 3)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "fused": None, "params": [0]}],
        },
        best={"accuracy": 0.5},
        random_state=torch.get_rng_state()[:64],
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.safetensors"


def test_round_trip(path):
    saved = small_checkpoint(7)
    checkpoint.save(saved, path)
    assert_same_state(vars(checkpoint.load(path)), vars(saved))
    assert os.listdir(path.parent) == [path.name]


def test_the_file_is_one_of_safetensors(path):
    checkpoint.save(small_checkpoint(7), path)
    tensors = safetensors.torch.load_file(path)
    assert torch.equal(tensors["learner.weight"], torch.arange(40.0))


def test_two_generations_are_kept(path, caplog):
    for iteration in (1, 2, 3):
        checkpoint.save(small_checkpoint(iteration), path)
    assert {each.name for each in path.parent.iterdir()} == {
        "last.safetensors",
        "last.previous.safetensors",
    }
    assert checkpoint.load(path).iteration == 3
    assert caplog.text == ""
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoint.load(path).iteration == 2
    assert f"{path}: not a whole checkpoint" in caplog.text
    path.unlink()
    assert checkpoint.load(path).iteration == 2
    checkpoint.previous(path).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.previous\.safetensors: not a whole"):
        checkpoint.load(path)


def test_every_single_bit_flip_is_found(path):
    data = checkpoint.to_bytes(small_checkpoint(7))
    chosen = random.Random(0)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    places = [chosen.randrange(len(data) * 8) for _ in range(300)]
    places += [chosen.randrange(header * 8) for _ in range(100)]
    for place in (*places, *range(64)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"last\.safetensors: not a whole checkpoint"):
            checkpoint.read(path)


def test_every_cut_and_every_addition_is_found(path):
    data = checkpoint.to_bytes(small_checkpoint(7))
    cuts = [data[:end] for end in (*range(12), *range(12, len(data), 97), len(data) - 1)]
    for damaged in (*cuts, data + b"\0", data * 2, data[8:], data[::-1]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.safetensors: not a whole checkpoint"):
            checkpoint.read(path)


def signed(header: dict, body: bytes = b"") -> bytes:
    """A file with a header of our own and a checksum that is right."""
    metadata = header.setdefault("__metadata__", {})
    metadata.setdefault("format", checkpoint.FORMAT)
    metadata["sha256"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    data = struct.pack("<Q", len(text)) + text + body
    return _sealed._with_digest(data, "0" * 64, hashlib.sha256(data).hexdigest())


def state_of(**changes) -> dict:
    """The JSON of a checkpoint without tensors but one, with some entries changed."""
    tree = {
        **{"config": {"dict": []}, "iteration": 1, "learner": {"dict": []}, "best": None},
        **{"optimizer": {"dict": []}, "random_state": {"tensor": "r"}, "elapsed": 0.0},
        **{"skipped": {"dict": []}, "records": 0, "platform": {"dict": []}},
    }
    return {name: value for name, value in {**tree, **changes}.items() if value != "absent"}


ONE = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def test_a_file_made_by_hand_is_read_if_it_is_right(path):
    path.write_bytes(signed({"__metadata__": {"state": json.dumps(state_of())}, "r": ONE}, b"abcd"))
    assert checkpoint.read(path).random_state.tolist() == [97, 98, 99, 100]


HOSTILE = {
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "the largest header": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a header nested too deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no metadata": struct.pack("<Q", 2) + b"{}",
    "no state": signed({"r": ONE}, b"abcd"),
    "a tensor longer than the file": signed(
        {
            "__metadata__": {"state": json.dumps(state_of())},
            "r": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        },
        b"abcd",
    ),
    "a shape that is no product": signed(
        {
            "__metadata__": {"state": json.dumps(state_of())},
            "r": {"dtype": "U8", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        },
        b"abcd",
    ),
    "a negative shape": signed(
        {"__metadata__": {"state": json.dumps(state_of())}, "r": {**ONE, "shape": [-4]}}, b"abcd"
    ),
    "another format": signed({"__metadata__": {"format": "x", "state": "{}"}}),
    **{
        name: signed({"__metadata__": {"state": json.dumps(state)}, "r": ONE}, b"abcd")
        for name, state in {
            "a tensor that is not there": state_of(random_state={"tensor": "q"}),
            "no random state": state_of(random_state="absent"),
            "an unknown entry": state_of(optimiser={"dict": []}),
            "an iteration that is a text": state_of(iteration="1"),
            "an iteration that is a truth value": state_of(iteration=True),
            "a learner that is a list": state_of(learner={"list": []}),
            "a list without its kind": state_of(config=[1]),
            "an unknown kind": state_of(config={"set": []}),
            "two kinds": state_of(config={"list": [], "dict": []}),
            "a dictionary of no pairs": state_of(config={"dict": [1]}),
            "a key that is a list": state_of(config={"dict": [[[1], 2]]}),
        }.items()
    },
    "a state that is a list": signed({"__metadata__": {"state": "[]"}, "r": ONE}, b"abcd"),
    "not a checkpoint": b"not a checkpoint",
    "a pickle": b"\x80\x04\x95" + b"\0" * 100,
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_no_checkpoint_is_named(path, data):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: not a whole checkpoint \(.+"):
        checkpoint.read(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(CheckpointError, match=r"last\.safetensors: there is no such checkpoint"):
        checkpoint.load(path)


def test_what_json_and_tensors_cannot_say_is_not_saved(path):
    saved = small_checkpoint(1)
    saved.best = {"accuracy": object()}
    with pytest.raises(TypeError, match=r"checkpoint: best\.accuracy: cannot keep a object"):
        checkpoint.save(saved, path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("change", ["unknown key", "missing key", "other shape"])
def test_the_state_of_another_learner_is_named(tmp_path, tiny_root, change):
    run, config = Run(tmp_path / "run"), tiny_config(tiny_root, iterations=1)
    Trainer(config, run).fit()
    saved = checkpoint.load(run.last_path)
    if change == "unknown key":
        saved.learner["model.tail.weight"] = torch.zeros(1)
    elif change == "missing key":
        del saved.learner["model.head.weight"]
    else:
        saved.learner["model.head.weight"] = torch.zeros(1)
    checkpoint.save(saved, run.last_path)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: not the state of this learner"):
        Trainer(config.replace(iterations=2), run)
    checkpoint.save(saved, run.best_path)
    with pytest.raises(CheckpointError, match="not the state of this learner"):
        build.trained(run, config, (1, 16, 16))


def test_a_run_whose_last_checkpoint_is_damaged_loses_one_interval(tmp_path, tiny_root, caplog):
    config = tiny_config(tiny_root)
    whole, damaged = Run(tmp_path / "whole"), Run(tmp_path / "damaged")
    Trainer(config, whole).fit()
    Trainer(config, damaged, reporter=StopAfter(4)).fit()
    data = bytearray(damaged.last_path.read_bytes())
    data[-1] ^= 1
    damaged.last_path.write_bytes(data)
    trainer = Trainer(config, damaged)
    assert trainer.iteration in (3, 4)
    assert str(damaged.last_path) in caplog.text
    trainer.fit()
    assert timeless(damaged) == timeless(whole)


@pytest.mark.parametrize("learner", sorted(LEARNERS))
@pytest.mark.parametrize(
    ("stop", "network"),
    [
        (2, {"model": "conv4"}),
        (3, {"model": "resnet12", "width": 2, "data": "cifar-fs"}),
        (5, {"model": "conv4"}),
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
    for name in ("last.safetensors", "best.safetensors"):
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


class Crash(BaseException):
    """What nothing in a training catches."""


@pytest.mark.parametrize("moment", ["validation", "step"])
def test_resume_after_a_crash_is_exact(tmp_path, tiny_root, moment):
    config = tiny_config(tiny_root, save_every=3, iterations=8)
    whole, crashed = Run(tmp_path / "whole"), Run(tmp_path / "crashed")
    Trainer(config, whole).fit()
    reporter = StopAfter(100)

    def crash(record, *rest):
        if record["iteration"] == 6:
            raise Crash

    setattr(reporter, moment, crash)
    with pytest.raises(Crash):
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
