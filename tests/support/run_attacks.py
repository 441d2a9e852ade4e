"""Attacks on what a run leaves and on processes that run for long."""

import random
import resource
import threading
from pathlib import Path

import torch

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.training import checkpoint
from support.attacks import Result, attack
from support.plain_tasks import batch, network

# What a process may grow by after it has warmed up, in any number of meta-steps.
GROWTH_MEGABYTES = 32
WARM_UP = 20
# What a learner needs on the tests' small network.
OPTIONS = {"cavia": {"block": 1}}


def _saved() -> bytes:
    generator = torch.Generator().manual_seed(0)
    return checkpoint.to_bytes(
        checkpoint.Checkpoint(
            config={"learner": "maml", "seed": 1},
            iteration=7,
            learner={"model.weight": torch.randn(5, 3, generator=generator)},
            optimizer={"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1}]},
            best=None,
            random_state=torch.get_rng_state(),
        )
    )


def _is_refused(data: bytes) -> bool:
    """Whether a file of a checkpoint is refused by an error that the reader knows."""
    try:
        checkpoint.from_bytes(data)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return True
    except Exception as error:
        return type(error).__name__ == "SafetensorError"
    return False


@attack("checkpoint, one bit flipped")
def flipped(seed: int, draws: int) -> Result:
    """Every bit counts: each of the draws flips one."""
    whole, drawn, failures = _saved(), random.Random(seed), []
    for _ in range(draws):
        position, bit = drawn.randrange(len(whole)), drawn.randrange(8)
        data = bytearray(whole)
        data[position] ^= 1 << bit
        if not _is_refused(bytes(data)):
            failures.append(f"bit {bit} of byte {position} may be flipped")
    return Result(draws, failures)


@attack("checkpoint, cut, filled or with hostile sizes")
def mutilated(seed: int, draws: int) -> Result:
    """The end cut off, a part overwritten by random bytes, or a header of another length."""
    whole, drawn, failures = _saved(), random.Random(seed), []
    for draw in range(draws):
        data = bytearray(whole)
        if draw % 3 == 0:
            del data[drawn.randrange(len(whole)) :]
        elif draw % 3 == 1:
            start = drawn.randrange(len(whole) - 1)
            data[start : start + 64] = drawn.randbytes(min(64, len(whole) - start))
        else:
            data[:8] = drawn.choice((2**63, len(whole), drawn.randrange(2**40))).to_bytes(
                8, "little"
            )
        if bytes(data) != whole and not _is_refused(bytes(data)):
            failures.append(f"draw {draw} of seed {seed} is taken for a checkpoint")
    return Result(draws, failures)


def _resident_megabytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@attack("long runs: memory, files and threads of every learner")
def long_runs(seed: int, draws: int) -> Result:
    """So many meta-steps, shared among the learners; each with its own tasks."""
    if not Path("/proc/self/statm").exists():
        return Result(0, [])
    torch.set_num_threads(1)
    steps, failures = max(WARM_UP + 1, draws // len(LEARNERS)), []
    for name, kind in LEARNERS.items():
        if name == "multi-maml":
            continue  # it wants to know each task's distribution, and is MAML on one
        learner = kind(network(), **OPTIONS.get(name, {}))
        optimizer = torch.optim.Adam(learner.parameters(), lr=1e-4)
        for step in range(steps):
            if step == WARM_UP:
                before = _resident_megabytes(), _open_files(), threading.active_count()
            optimizer.zero_grad()
            learner.meta_backward(batch(seed=seed + 2 * step))
            optimizer.step()
        grown = _resident_megabytes() - before[0]
        if grown > GROWTH_MEGABYTES:
            failures.append(f"{name}: {grown} MB more after {steps} meta-steps")
        if (_open_files(), threading.active_count()) != before[1:]:
            failures.append(f"{name}: files and threads were {before[1:]}, not any more")
    return Result(steps * (len(LEARNERS) - 1), failures)
