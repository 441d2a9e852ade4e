"""The tables of the studies, from what their cases kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from statistics import fmean
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.markdown import markdown
from benchmarks.study import Measured, measured
from metasparse_ext.training import Run, RunEvaluation, evaluation

Done = tuple[Measured, RunEvaluation]


def cases(study: str) -> list[Done]:
    """The cases of a study that are done, in the order of their names."""
    folders = sorted(path.parent for path in (RESULTS / study).glob("*/measured.json"))
    return [(measured(folder), evaluation.kept(Run(folder))) for folder in folders]


def learners() -> Iterator[str]:
    """One table a task, the best learner first."""
    by_task = sorted(cases("learners"), key=lambda done: done[0].labels["task"])
    for _, group in groupby(by_task, key=lambda done: done[0].labels["task"]):
        done = sorted(group, key=lambda each: -each[1].numbers["accuracy"])
        head = ("learner", "accuracy", "active kernels", "MACs", "s/iteration", "iterations")
        rows = [
            (
                f"`{found.labels['learner']}`",
                accuracy(result.numbers),
                f"{100 * result.numbers['active']:.1f} %",
                f"{result.numbers['macs'] / 1e6:.2f} M",
                f"{found.last['elapsed'] / found.last['iteration']:.3f}",  # processor time
                str(found.last["iteration"]),
                f"{found.memory / 2**20:.0f} MiB",
            )
            for found, result in done
        ]
        title = f"{done[0][1].setting}: {_budget(*done)}."
        yield markdown(title, (*head, "memory"), rows)


def tickets() -> Iterator[str]:
    """One table a backbone: accuracy, and what the searches cost beside the iterative one."""
    done = cases("tickets")
    for backbone in sorted({found.labels["backbone"] for found, _ in done}):
        ours = {f.labels["ticket"]: (f, r) for f, r in done if f.labels["backbone"] == backbone}
        searches = {way: f.last.get("search_macs") for way, (f, _) in ours.items()}
        whole = searches.get("iterative")
        rows = [
            (
                way,
                accuracy(ours[way][1].numbers),
                f"{100 * ours[way][0].last.get('density', 1.0):.1f} %",
                f"{ours[way][1].numbers['macs'] / 1e6:.2f} M",
                _macs(searches[way]),
                f"{100 * searches[way] / whole:.1f} %" if whole and searches[way] else "",
                _macs(ours[way][0].last.get("training_macs")),
            )
            for way in ("dense", "iterative", "early")
            if way in ours
        ]
        head = (
            "ticket",
            "accuracy",
            "weights",
            "MACs",
            "search MACs",
            "of the iterative",
            "training MACs",
        )
        some = next(iter(ours.values()))
        yield markdown(f"{backbone}, {some[1].setting}: {_budget(some)}.", head, rows)


def mixtures() -> Iterator[str]:
    """One row a learner: the mean over distributions and seeds, each seed, each distribution."""
    done = cases("mixtures")
    if not done:
        return
    names = list(done[0][1].numbers["distributions"])
    rows = []
    for learner in dict.fromkeys(found.labels["learner"] for found, _ in done):
        found = [result.numbers for f, result in done if f.labels["learner"] == learner]
        parts = {name: [n["distributions"][name]["accuracy"] for n in found] for name in names}
        means = [fmean(seed) for seed in zip(*parts.values(), strict=True)]
        rows.append(
            (
                f"`{learner}`",
                f"{100 * fmean(means):.2f} %",
                ", ".join(f"{100 * mean:.2f}" for mean in means),
                *(f"{100 * fmean(parts[name]):.2f} %" for name in names),
            )
        )
    rows.sort(key=lambda row: -float(row[1].split()[0]))
    title = f"{done[0][1].setting}, mean over the distributions: {_budget(done[0])}."
    yield markdown(title, ("learner", "accuracy", "by seed", *names), rows)


def accuracy(numbers: Mapping[str, Any]) -> str:
    return f"{100 * numbers['accuracy']:.2f} ± {100 * numbers['interval']:.2f} %"


def _macs(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.1f} G"


def _budget(*done: Done) -> str:
    """What each case of a table may take, how it was evaluated, and on which machines."""
    found, result = done[0]
    last = found.stages[-1]
    seconds = sum(stage["max_seconds"] or 0 for stage in found.stages)
    cost = (
        f"{seconds:g} s of processor time"
        if seconds
        else f"{last['iterations']} iterations a training"
    )
    kind = "transductive" if result.numbers["transductive"] else "not transductive"
    tasks = f"{result.numbers['tasks']} test tasks, {kind}"
    machines: dict[str, list[str]] = {}
    for each, _ in done:
        where = f"{each.environment['processor']}, torch {each.environment['torch']}"
        machines.setdefault(where, []).append(f"`{each.labels.get('learner', '')}`")
    most, *others = sorted(machines, key=lambda where: -len(machines[where]))
    rest = (f"; {', '.join(machines[where])}: of {where}" for where in others)
    return f"{cost}, {tasks}; one thread of {most}{''.join(rest)}"
