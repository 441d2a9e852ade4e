"""Many more random cases than the tests run, of everything that can be attacked that way.

    python tools/stress.py [--draws 20000] [--seed N] [--attack NAME ...] [--out table.md]

Prints a table of attacks, cases and failures, and a command for each failure that shows it alone.
The exit status is 1 if there is any.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.attacks import Result, attacks  # noqa: E402

HEADER = ("attack", "cases", "failures")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_000, help="cases of all attacks together")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--attack", action="append", choices=sorted(attacks()), metavar="NAME")
    parser.add_argument("--out", type=Path, help="where to write the table, as Markdown")
    given = parser.parse_args()
    if given.draws < 1:
        parser.error(f"argument --draws: expected at least 1, got {given.draws}")
    return given


def run(names: list[str], seed: int, draws: int) -> Iterator[tuple[str, Result]]:
    """The results of the attacks, each of which gets an equal share of the draws."""
    for index, name in enumerate(names):
        share = draws // len(names) + (index < draws % len(names))
        yield name, attacks()[name](seed, share)


def table(results: dict[str, Result]) -> str:
    """Markdown."""
    rows = [(name, r.cases, len(r.failures)) for name, r in results.items()]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"| {name} | {cases:,} | {failures} |" for name, cases, failures in rows]
    return "\n".join([f"| {' | '.join(HEADER)} |", "|---|---:|---:|", *lines]) + "\n"


def main() -> int:
    given = arguments()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    results = {}
    for name, result in run(given.attack or list(attacks()), seed, given.draws):
        results[name] = result
        print(f"{name}: {result.cases} cases, {len(result.failures)} failures", flush=True)
        for failure in result.failures:
            print(f"- {failure}", flush=True)
    text = table(results)
    print(text, end="")
    if given.out is not None:
        given.out.write_text(text)
    return 1 if any(r.failures for r in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
