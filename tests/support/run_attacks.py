"""Attacks on what a run leaves and on processes that run for long."""

import multiprocessing
import random
import resource
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import torch

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.data import TaskBatch
from metasparse_ext.training import checkpoint
from support.attacks import Result, attack
from support.plain_tasks import batch, network

CHECKPOINTS = 1000  # mutilated at once
# What a process may grow by after it has warmed up, in any number of meta-steps.
GROWTH_MEGABYTES = 32
WARM_UP = 20
DISTRIBUTIONS = 2  # with a task each
# Those without inner steps.
HEADS_SOLVED = ("convex-imaml", "protonet", "r2d2")
# What a learner needs on the tests' small network, or what makes its steps short.
OPTIONS = {
    **{name: {"inner_steps": 2} for name in LEARNERS if name not in HEADS_SOLVED},
    "imaml": {"inner_steps": 2, "cg_steps": 2},
    "metadock": {"inner_steps": 2, "cg_steps": 2},
    "cavia": {"inner_steps": 2, "block": 1},
    "multi-maml": {"inner_steps": 2, "distributions": DISTRIBUTIONS},
}


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


@attack("checkpoint, one bit flipped", round=CHECKPOINTS)
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


@attack("checkpoint, cut, filled or with hostile sizes", round=CHECKPOINTS)
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


class Held(NamedTuple):
    """What this process holds of the system."""

    megabytes: int
    files: int
    threads: int

    @classmethod
    def now(cls) -> Self:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        return cls(resident >> 20, _entries("/proc/self/fd"), _entries("/proc/self/task"))


def _entries(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def _tasks(seed: int) -> TaskBatch:
    """A task of each distribution."""
    of = torch.arange(DISTRIBUTIONS)
    return TaskBatch(*(part._replace(distribution=of) for part in batch(DISTRIBUTIONS, seed)))


def _meta_steps(name: str, seed: int, steps: int) -> list[str]:
    """Trains; what the process holds more at the end than when it had warmed up."""
    torch.set_num_threads(1)
    learner = LEARNERS[name](network(), **OPTIONS.get(name, {}))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-4)
    for step in range(steps):
        if step == WARM_UP:
            before = Held.now()
        optimizer.zero_grad()
        learner.meta_backward(_tasks(seed + 2 * step))
        optimizer.step()
    after = Held.now()
    grown = after.megabytes - before.megabytes > GROWTH_MEGABYTES
    if grown or after[1:] != before[1:]:
        return [f"{name}, seed {seed}: after {steps} meta-steps {after}, once warm {before}"]
    return []


def long_run(name: str, seed: int, steps: int) -> Result:
    """So many meta-steps of a learner in a process of its own, each on other tasks."""
    if not Path("/proc/self/statm").exists():
        return Result(0, [])
    steps = max(WARM_UP + 1, steps)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return Result(steps, alone.submit(_meta_steps, name, seed, steps).result())


for _name in LEARNERS:
    attack(f"long run: {_name}", round=None)(partial(long_run, _name))
