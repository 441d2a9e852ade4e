"""Random calls of every op against its definition: the same ones each time, and new ones.

``make stress`` runs many more of them.
"""

import ctypes
import random
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from support import attacks, masked_conv
from support.differential import STRATEGIES
from support.machine import INSTRUCTION_SETS, Workers
from support.operands import LAYOUTS, place
from support.search import search

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
REMEMBERED = {
    "columns of the image that no window covers": masked_conv.Conv(
        samples=4, inputs=16, outputs=12, size=(9, 9), mask="binary", density=0.3, **STRIDED
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
}


@compiled
@pytest.mark.parametrize("name", REMEMBERED)
def test_what_was_wrong_once_is_right(name, workers):
    assert workers.check(REMEMBERED[name]) is None


class Planted(NamedTuple):
    """A draw with a fault of its own: wrong from 30 on, or reading past its memory."""

    value: int
    crashes: bool = False
    isa: str = INSTRUCTION_SETS[0]

    def check(self) -> str | None:
        if self.crashes:
            values = place((3,), "before guard", torch.ones)
            ctypes.string_at(values.data_ptr() + values.nbytes, 1)
        return "too large" if self.value >= 30 else None


def test_the_smallest_failing_draw_is_reported(workers):
    failure = search(st.builds(Planted, st.integers(0, 1000)), workers, 0, draws=100)
    assert failure.startswith("too large")
    assert "Planted(value=30, crashes=False" in failure
    assert "METASPARSE_CPU_ISA=" in failure


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


def test_stress_counts_and_reports(monkeypatch, capsys, tmp_path):
    def fails(seed: int, draws: int) -> attacks.Result:
        return attacks.Result(draws, [f"seed {seed} fails"])

    def passes(seed: int, draws: int) -> attacks.Result:
        return attacks.Result(draws, [])

    monkeypatch.setattr(stress, "attacks", lambda: {"one": fails, "other": passes})
    out = tmp_path / "stress.md"
    monkeypatch.setattr("sys.argv", ["stress", "--draws", "7", "--seed", "5", "--out", str(out)])
    assert stress.main() == 1
    assert "- seed 5 fails" in capsys.readouterr().out
    rows = ["| one | 4 | 1 |", "| other | 3 | 0 |", "| all | 7 | 1 |"]
    assert out.read_text().splitlines()[2:] == rows

    monkeypatch.setattr("sys.argv", ["stress", "--draws", "7", "--attack", "other"])
    assert stress.main() == 0


def test_two_attacks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'topk_mask' is registered already"):
        attacks.attack("topk_mask")(lambda seed, draws: attacks.Result(0, []))
