"""Many more random cases than the tests run, of everything that can be attacked that way.

    python tools/stress.py [--draws 20000] [--seed N] [--attack PATTERN ...] [--jobs N]
                           [--minutes N] [--out table.md [--resume]]

Prints a table of attacks, cases and failures, and a command for each failure that shows it alone.
The attacks take turns, and the table is written anew after each: a program that was stopped left
a table of what it did, from which --resume goes on. The exit status is 1 if anything failed.
"""

import argparse
import fnmatch
import itertools
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.attacks import Result, attacks  # noqa: E402

from metasparse_ext import _atomic  # noqa: E402

HEADER = ("attack", "cases", "failures", "seed")


class Tally(NamedTuple):
    """What was tried of an attack."""

    cases: int = 0
    failures: int = 0


class Round(NamedTuple):
    """Some cases of an attack, which one process tries."""

    attack: str
    seed: int
    cases: int


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_000, help="cases of each attack")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument(
        "--attack", action="append", metavar="PATTERN", help="names, such as 'cg*'; default: all"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--minutes", type=float, help="begin no more cases after so long")
    parser.add_argument("--out", type=Path, help="where to write the table, as Markdown")
    parser.add_argument("--resume", action="store_true", help="go on from the table, its seed too")
    given = parser.parse_args()
    if given.resume and (given.out is None or given.seed is not None):
        parser.error("argument --resume: expected --out, and no --seed")
    for name in ("draws", "jobs"):
        if getattr(given, name) < 1:
            parser.error(f"argument --{name}: expected at least 1, got {getattr(given, name)}")
    given.names = list(attacks())
    if given.attack is not None:
        chosen = [fnmatch.filter(given.names, pattern) for pattern in given.attack]
        for pattern, found in zip(given.attack, chosen, strict=True):
            if not found:
                parser.error(f"argument --attack: expected one of {given.names}, got {pattern!r}")
        given.names = list(dict.fromkeys(itertools.chain(*chosen)))
    return given


def rounds(found: dict[str, Tally], seed: int, draws: int) -> Iterator[Round]:
    """What is left of every attack, in rounds of its size, in turn; none of them are alike."""

    def of(name: str) -> Iterator[Round]:
        size = attacks()[name].round or draws
        for start in range(found[name].cases, draws, size):
            yield Round(name, seed * 10**6 + start, min(size, draws - start))

    turns = itertools.zip_longest(*map(of, found))
    return (work for turn in turns for work in turn if work is not None)


def run(work: Round) -> tuple[Round, Result]:
    """The round and what came of it."""
    return work, attacks()[work.attack].run(work.seed, work.cases)


def results(work: Iterator[Round], jobs: int, end: float) -> Iterator[tuple[Round, Result]]:
    """What came of the rounds, as they finish; none is begun after ``end``."""
    work = itertools.takewhile(lambda _: time.monotonic() < end, work)
    if jobs == 1:
        yield from map(run, work)
        return
    # Not forked: the threads of PyTorch do not go on in a forked process.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run, found) for found in itertools.islice(work, jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for finished in done:
                running |= {pool.submit(run, found) for found in itertools.islice(work, 1)}
                yield finished.result()


def table(found: dict[str, Tally], seed: int) -> str:
    """Markdown."""
    rows = list(found.items())
    rows.append(("all", Tally(*map(sum, zip(*found.values(), strict=True)))))
    lines = [f"| {name} | {cases:,} | {failures} | {seed} |" for name, (cases, failures) in rows]
    return "\n".join([f"| {' | '.join(HEADER)} |", "|---|---:|---:|---:|", *lines]) + "\n"


def read_table(text: str) -> tuple[dict[str, Tally], int]:
    """What :func:`table` was made of."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()[2:-1]]
    seed = int(lines[0][3])
    return {name: Tally(int(n.replace(",", "")), int(wrong)) for name, n, wrong, _ in lines}, seed


def main() -> int:
    given = arguments()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    before = {}
    if given.resume:
        before, seed = read_table(given.out.read_text())
    print(f"seed {seed}", flush=True)
    end = float("inf") if given.minutes is None else time.monotonic() + 60 * given.minutes
    found = {**before, **{name: before.get(name, Tally()) for name in given.names}}
    left = {name: found[name] for name in given.names}
    for work, result in results(rounds(left, seed, given.draws), given.jobs, end):
        so_far = found[work.attack]
        found[work.attack] = Tally(
            so_far.cases + result.cases, so_far.failures + len(result.failures)
        )
        print(f"{work.attack}: {found[work.attack].cases} cases", flush=True)
        for failure in result.failures:
            print(f"- {failure}", flush=True)
        if given.out is not None:
            _atomic.replace_text(given.out, table(found, seed))
    print(table(found, seed), end="")
    return int(any(tally.failures for tally in found.values()))


if __name__ == "__main__":
    sys.exit(main())
