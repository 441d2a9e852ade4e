"""Random calls of every op against its definition: the same ones each time, and new ones.

``make stress`` runs many more of them.
"""

import ctypes
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from support import attacks, machine, masked_conv
from support.differential import STRATEGIES
from support.machine import INSTRUCTION_SETS, Workers
from support.operands import LAYOUTS, place
from support.search import search
from support.softmax_head import Head

from metasparse_ext import _library
from tools import stress

compiled = pytest.mark.skipif(
    _library.problem is not None, reason="without the compiled library the ops are the definition"
)


@pytest.fixture(scope="module")
def workers():
    running = Workers()
    yield running
    running.close()


@compiled
@pytest.mark.parametrize("name", STRATEGIES)
def test_draws_equal_the_definition(name, workers):
    fresh = random.SystemRandom().randrange(2**32)
    for seed in (0, fresh):
        failure = search(STRATEGIES[name], workers, seed, draws=100)
        assert failure is None, f"{name}, seed {seed}: {failure}"


# Calls that were wrong once, by what was wrong.
STRIDED = {"operation": "input_grad", "kernel": (2, 2), "stride": (2, 2), "dtype": "float32"}
ALIKE = {"layouts": ("constant", "constant", "contiguous")}
REMEMBERED = {
    "columns of the image that no window covers": masked_conv.Conv(
        samples=4, inputs=16, outputs=12, size=(9, 9), mask="binary", density=0.3, **STRIDED
    ),
    "a kernel of one channel with the strides of channels last": masked_conv.Conv(
        operation="hessian",
        size=(5, 5),
        kernel=(4, 4),
        stride=(1, 2),
        wanted=("x",),
        layouts=("contiguous", "channels last", *["contiguous"] * 3),
        dtype="float32",
    ),
    "equal terms, which round the same way": masked_conv.Conv(
        operation="gradients",
        samples=2,
        inputs=22,
        size=(4, 7),
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        wanted=("x",),
        layouts=("constant", "constant", *["contiguous"] * 3),
        dtype="float32",
        isa=INSTRUCTION_SETS[0],
        backend="direct",
        data=526,
    ),
    "the same, forced": masked_conv.Conv(size=(3, 3), outputs=2, backend="direct", **STRIDED),
    "the gradient ends before a guard page": masked_conv.Conv(
        samples=4,
        inputs=16,
        outputs=12,
        size=(9, 9),
        mask="binary",
        density=0.1,
        layouts=(*["contiguous"] * 4, "before guard"),
        **STRIDED,
    ),
    "stride 2 without padding, an even image": masked_conv.Conv(
        samples=4,
        inputs=16,
        outputs=12,
        size=(10, 10),
        mask="binary",
        density=0.3,
        **(STRIDED | {"kernel": (3, 3)}),
    ),
    "a head of more samples than features": Head(
        samples=6,
        features=3,
        classes=2,
        lam=0.01,
        layouts=("contiguous", "overlapping", "contiguous"),
    ),
    "heads of two samples and one feature": Head(
        tasks=2, samples=2, features=1, classes=2, lam=0.01, data=1
    ),
    "a head of one sample in two classes, whose scores cross": Head(
        tasks=4,
        samples=2,
        features=29,
        classes=5,
        lam=0.1,
        spread=3.0,
        layouts=("expanded", "contiguous", "contiguous"),
        dtype="float32",
        data=1,
    ),
    "heads whose samples are all alike": Head(
        tasks=2, samples=16, features=16, classes=4, spread=3.0, data=987068, **ALIKE
    ),
    "a head that stopped short of its tolerance": Head(
        samples=12,
        features=30,
        classes=4,
        spread=3.0,
        isa=INSTRUCTION_SETS[0],
        data=430,
        **ALIKE,
    ),
    "a head that took every iteration": Head(
        tasks=3,
        samples=25,
        features=26,
        classes=2,
        spread=3.0,
        layouts=("expanded", "expanded", "contiguous"),
        isa=INSTRUCTION_SETS[0],
        data=257,
    ),
    "a head of the widest registers": Head(
        samples=23,
        features=53,
        classes=2,
        lam=0.01,
        spread=3.0,
        layouts=("expanded", "transposed", "contiguous"),
        data=243,
    ),
    "large coefficients that cancel, in float32": Head(
        samples=15, features=12, classes=4, lam=0.01, dtype="float32", data=4, **ALIKE
    ),
}


@compiled
@pytest.mark.parametrize("name", REMEMBERED)
def test_what_was_wrong_once_is_right(name, workers):
    assert workers.check(REMEMBERED[name]) is None


class Planted(NamedTuple):
    """A draw with a fault of its own: wrong from 30 on, or reading past its memory."""

    value: int
    crashes: bool = False
    once: str = ""  # a file: where it is, all is well
    sleeps: float = 0
    isa: str = INSTRUCTION_SETS[0]

    def check(self) -> str | None:
        if self.crashes:
            values = place((3,), "before guard", torch.ones)
            ctypes.string_at(values.data_ptr() + values.nbytes, 1)
        if self.once and not Path(self.once).exists():
            Path(self.once).touch()
            return "wrong the first time"
        time.sleep(self.sleeps)
        return "too large" if self.value >= 30 else None


def test_the_smallest_failing_draw_is_reported(workers):
    failure = search(st.builds(Planted, st.integers(0, 1000)), workers, 0, draws=100)
    assert failure.startswith("too large")
    assert "Planted(value=30, crashes=False" in failure
    assert "METASPARSE_CPU_ISA=" in failure


def test_a_draw_without_a_result_is_a_failure(workers, monkeypatch):
    monkeypatch.setattr(machine, "PATIENCE", 1)
    assert workers.check(Planted(0, sleeps=600)) == "no result after 1 s"
    monkeypatch.undo()
    assert workers.check(Planted(0)) is None


def test_what_fails_at_times_is_reported(workers, tmp_path):
    draws = st.builds(Planted, st.just(0), st.just(False), st.just(str(tmp_path / "there")))
    failure = search(draws, workers, 0, draws=10)
    assert failure.startswith("at times, wrong the first time")


def test_a_crash_is_a_failure_and_draws_go_on(workers):
    assert workers.check(Planted(0, crashes=True)) == "the process ended by SIGSEGV"
    assert workers.check(Planted(0)) is None
    assert workers.check(Planted(30)) == "too large"


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_keeps_shape_and_values(layout, shape):
    tensor = place(shape, layout, lambda size: torch.rand(tuple(size)) + 1)
    assert tensor.shape == shape
    low, high = (-2, -1) if tensor.is_neg() else (1, 2)
    assert ((tensor >= low) & (tensor <= high)).all()


@compiled
def test_a_wrong_result_is_found(monkeypatch):
    """An op that leaves the bias out."""
    op = masked_conv._OPS.masked_conv
    forget = lambda d, o: [op(o["x"], o["weight"], None, None, *d.window)]  # noqa: E731
    draw = masked_conv.Conv(inputs=3, size=(5, 5), kernel=(3, 3), biased=True)
    assert draw.check() is None
    monkeypatch.setitem(masked_conv._CALLS, "forward", forget)
    assert "elements differ by more than" in draw.check()


def stressed(monkeypatch, attack: attacks.Tries, round: int | None, *options: str) -> int:
    """The exit status of the stress program with one more attack than it has."""
    planted = {"planted": attacks.Attack(attack, round), **attacks.attacks()}
    monkeypatch.setattr(stress, "attacks", lambda: planted)
    monkeypatch.setattr("sys.argv", ["stress", *options])
    return stress.main()


def test_stress_counts_and_reports(monkeypatch, capsys, tmp_path):
    """Of every attack all draws, in rounds of different seeds."""
    seen = []

    def fails(seed: int, draws: int) -> attacks.Result:
        seen.append((seed, draws))
        return attacks.Result(draws, [f"seed {seed} fails"])

    out = tmp_path / "stress.md"
    options = ["--draws", "7", "--seed", "5", "--jobs", "1", "--out", str(out)]
    checkpoints = "checkpoint, one bit flipped"
    wanted = ["--attack", "plan*", "--attack", checkpoints]
    assert stressed(monkeypatch, fails, 3, *options, *wanted) == 1
    assert seen == [(5_000_000, 3), (5_000_003, 3), (5_000_006, 1)]
    assert "- seed 5000003 fails" in capsys.readouterr().out
    rows = ["| planted | 7 | 3 | 5 |", f"| {checkpoints} | 7 | 0 | 5 |", "| all | 14 | 3 | 5 |"]
    assert out.read_text().splitlines()[2:] == rows

    seen.clear()
    stressed(monkeypatch, fails, None, *options, "--attack", "planted")
    assert seen == [(5_000_000, 7)]


def test_a_stopped_stress_leaves_a_table_and_goes_on_from_it(monkeypatch, tmp_path):
    def stops(seed: int, draws: int) -> attacks.Result:
        if seed > 0:
            raise KeyboardInterrupt
        return attacks.Result(draws, [])

    out = tmp_path / "stress.md"
    options = ["--seed", "0", "--draws", "6", "--jobs", "1", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        stressed(monkeypatch, stops, 2, *options, "--attack", "planted")
    assert "| all | 2 | 0 | 0 |" in out.read_text()

    def goes_on(seed: int, draws: int) -> attacks.Result:
        assert seed in (2, 4)
        return attacks.Result(draws, ["wrong"])

    resumed = [*options[2:], "--attack", "planted", "--resume"]
    assert stressed(monkeypatch, goes_on, 2, *resumed) == 1
    assert "| planted | 6 | 2 | 0 |" in out.read_text()


def test_stress_begins_nothing_after_its_time(monkeypatch, capsys):
    def runs(seed: int, draws: int) -> attacks.Result:
        raise AssertionError("too late")

    options = ["--minutes", "0", "--jobs", "1", "--attack", "planted"]
    assert stressed(monkeypatch, runs, None, *options) == 0
    assert "| planted | 0 | 0 |" in capsys.readouterr().out


def test_stress_in_two_processes(tmp_path):
    """As a program, for the processes begin anew."""
    out = tmp_path / "stress.md"
    options = ["--draws", "1500", "--seed", "3", "--jobs", "2", "--attack", "checkpoint*"]
    command = [sys.executable, str(Path(stress.__file__)), *options, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    counts = [line.split(" | ")[1:] for line in out.read_text().splitlines()[2:]]
    assert counts == [["1,500", "0", "3 |"], ["1,500", "0", "3 |"], ["3,000", "0", "3 |"]]


def test_stress_knows_its_attacks(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["stress", "--attack", "conv"])
    with pytest.raises(SystemExit):
        stress.main()
    said = capsys.readouterr().err
    assert "argument --attack: expected one of [" in said
    assert "'masked_conv forward'" in said
    assert said.endswith("], got 'conv'\n")


def test_two_attacks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'topk_mask' is registered already"):
        attacks.attack("topk_mask", round=1)(lambda seed, draws: attacks.Result(0, []))
