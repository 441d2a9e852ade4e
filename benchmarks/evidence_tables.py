"""The tables of ``docs/evidence.md``: a source's table or figure, and ours beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch

from benchmarks import contributions, errors, published, ticket_patterns, training_curves
from benchmarks.markdown import markdown
from benchmarks.sources import PAIRS
from benchmarks.studies import TASKS, Budget, Case
from benchmarks.study import ALL, Measured, measured
from benchmarks.study_tables import accuracy
from metasparse_ext.training import Run, RunEvaluation, build, evaluation, metrics

MISSING = "not run yet"
Done = tuple[Measured, RunEvaluation]
Row = tuple[str, ...]


class Results:
    """What is kept of the studies' cases, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, study: str, case: str) -> Done | None:
        """A case, if it was run."""
        folder = self.folder / study / case
        found = measured(folder)
        kept = evaluation.kept(Run(folder)) if found else None
        return (found, kept) if found and kept else None

    def cases(self, study: str) -> list[tuple[Case, Done | None]]:
        """All cases of a study."""
        return [(case, self.of(study, case.name)) for case in ALL[study](Budget())]

    def picture(self, words: str, path: Path) -> list[str]:
        """A picture of the document that the results are for, if it is there."""
        there = (self.folder.parents[1] / "docs" / path.name).is_file()
        return [f"![{words}]({path.name})\n"] if there else []

    def blocks(self, study: str, tables: Iterable[str], names: Iterable[str] = ()) -> list[str]:
        """The tables, then the command for what is not run yet.

        Args:
            study: Where the rows are from.
            tables: Them.
            names: Of the study's cases that are rows; all of them by default.
        """
        cases = {case.name: done for case, done in self.cases(study)}
        names = list(names) or list(cases)
        left = [name for name in names if cases[name] is None]
        if not left:
            return list(tables)
        tasks = dict.fromkeys("-".join(name.split("-")[:-1]) for name in left)
        alone = len(names) == len(cases)
        only = [""] if alone else [f" --only '{task}-*'" for task in tasks]
        if f"{study}-minutes" in ALL:
            only.append("-minutes")
        return [*tables, _missing(*(f"python -m benchmarks.study {study}{each}" for each in only))]


def imaml(results: Results) -> list[str]:
    """Omniglot, five learners."""
    rows = []
    for case, done in results.cases("imaml"):
        task, learner = case.labels["task"], case.labels["learner"]
        ways, _, shots = task.partition("way-")
        here = f"omniglot-{shots}-{case.name.removeprefix(f'{task}-')}"
        study = "hessian-free-minutes" if "hessian" in here else "learners"
        short = results.of(study, here) if ways == "5" else None
        cells = published.IMAML[task][learner], _cell(done), _cell(short, "")
        rows.append((f"{task}, {learner}", *cells))
    head = ("Omniglot", "published", "ours, its setting", "ours, minutes")
    return results.blocks("imaml", [markdown("Accuracy, %:", head, rows)])


def cifar_fs(results: Results) -> list[str]:
    """MAML, ANIL and R2-D2 on CIFAR-FS."""
    rows, names = [], []
    for task, learners in published.CIFAR_FS.items():
        for learner, number in learners.items():
            names.append(f"{task}-{learner}")
            done = results.of("learners", names[-1])
            rows.append((f"{task.removeprefix('cifar-fs-')}, {learner}", number, _cell(done)))
    table = markdown("Accuracy, %:", ("CIFAR-FS, 5-way", "published", "ours, minutes"), rows)
    return results.blocks("learners", [table], names)


def long(results: Results) -> list[str]:
    """Hours of one core, beside minutes and what is published."""
    rows = []
    for case, done in results.cases("long"):
        task, learner = case.labels["task"], case.labels["learner"]
        minutes = _cell(results.of("learners", case.name), "")
        hours = f"{done[0].seconds / 3600:.1f}" if done else ""
        found = _cell(done) if done else _under_way(results.folder.parent, case) or MISSING
        rows.append((f"{task}, {learner}", published.of(task, learner), minutes, found, hours))
    head = ("5-way", "published", "ours, minutes", "ours, hours", "hours of one core")
    return results.blocks("long", [markdown("Accuracy, %:", head, rows)])


def _under_way(benchmarks: Path, case: Case) -> str:
    """How far a training is whose run is kept to go on; empty if there is none."""
    path = Run(benchmarks / "unfinished" / "long" / case.name / "0").metrics_path
    records = metrics.read(path) if path.is_file() else []
    accuracies = [record["accuracy"] for record in records if record["kind"] != "train"]
    if not accuracies:
        return ""
    iteration, of = records[-1]["iteration"], case.stages[-1].iterations
    return f"under way: {iteration} of {of} it., validation {100 * max(accuracies):.1f}"


def budgets(results: Results) -> list[str]:
    """Accuracy against parameters and multiply-accumulates."""
    head = ("budget", "parameters", "MACs", "accuracy, %")
    rows = [_sized(case, done) for case, done in results.cases("budgets")]
    tables = _unless_empty("The supplement's networks and settings:", ("CIFAR-FS", *head), rows)
    short = [_sized(case, done) for case, done in results.cases("budgets-minutes")]
    title = "Ten minutes of one core for the dense network, ten more for those from it:"
    tables += _unless_empty(title, ("CIFAR-FS", *head), short)
    other = [
        (f"5-way {shots}-shot, {case.labels['learner']}", *_size(case, done), _cell(done))
        for shots in (1, 5)
        for case, done in results.cases("learners")
        if case.name in (f"omniglot-{shots}shot-convex-imaml", f"omniglot-{shots}shot-metadock")
    ]
    title = "Minutes of one core: a dense network, and MetaDOCK from another one:"
    tables += _unless_empty(title, ("Omniglot, width 32", *head), other)
    return results.blocks("budgets", tables)


def kernels(results: Results) -> list[str]:
    """Figure 1: a picture of runs, whose checkpoints are not kept here."""
    runs = (f"runs/budgets-minutes/5shot-64-{kept}/0" for kept in ("1", "0.5"))
    return _picture_or_commands(
        results,
        "What input kernels contribute",
        contributions.PICTURE,
        "python -m benchmarks.study budgets-minutes --only 5shot-64-0.5",
        f"python -m benchmarks.contributions {' '.join(runs)}",
    )


def gems(results: Results) -> list[str]:
    """Accuracy on two distributions at once, and time."""
    head = ("distributions, learner", "accuracy on each, %", "time, MAML's = 1")
    theirs = [
        (f"{pair}, {learner}", f"{one:.1f} / {other:.1f}", f"{time / table['maml'][2]:.2f}")
        for pair, table in published.GEMS.items()
        for learner, (one, other, time) in table.items()
    ]
    tables = [markdown("Published:", head, theirs)]
    found = _by_label(results, "gems", "data", "learner")
    ours = []
    for (pair, learner), runs in found.items():
        base, time = _seconds(found[pair, "maml"]), _seconds(runs)
        ratio = f"{time / base:.2f}" if base and time else ""
        seeds = f"{len(runs)} of 3"
        ours.append((f"{pair}, {learner}", _distributions(runs), ratio, seeds))
    tables += _unless_empty("Ours, the source's setting:", (*head, "seeds"), ours)
    tables += _unless_empty(
        "Ours, one minute of one core each, 5-way 5-shot; time is that of an iteration:",
        (*head[:2], "mean ± deviation of seeds, %", *head[2:]),
        _mixtures(results),
    )
    return results.blocks("gems", tables)


def _mixtures(results: Results) -> list[Row]:
    """The trainings of minutes on several distributions."""
    pairs = {PAIRS[0]: _by_label(results, "mixtures", "learner")}
    pairs[PAIRS[1]] = _by_label(results, "gems-minutes", "learner")
    rows = []
    for pair, found in pairs.items():
        base = _seconds_an_iteration(found["maml",])
        for (learner,), runs in found.items():
            time = _seconds_an_iteration(runs)
            ratio = f"{time / base:.2f}" if base and time else ""
            mean = _mean(runs) if runs else ""
            rows.append((f"{pair}, {learner}", _distributions(runs), mean, ratio))
    return rows


def ablations(results: Results) -> list[str]:
    """Steps, rate and sparsity."""
    tables = []
    titles = {
        "ablations": "5-way 1-shot, the source's setting:",
        "ablations-minutes": "5-way 5-shot, one minute of one core each:",
    }
    for study, title in titles.items():
        rows = [
            (f"{case.labels['axis']}, {case.labels['learner']}", case.labels["value"], _cell(done))
            for case, done in results.cases(study)
        ]
        tables += _unless_empty(title, ("axis, learner", "value", "accuracy, %"), rows)
    return results.blocks("ablations", tables)


def tickets(results: Results) -> list[str]:
    """Cost of the early search, with and without the ticket's own training."""
    rows = []
    for backbone, claimed in published.TICKETS.items():
        ways = [results.of("tickets", f"{backbone}-{way}") for way in ("iterative", "early")]
        costs: Row = ("", "")
        if None not in ways:
            search = [done[0].last.get("search_macs", 0) for done in ways]
            training = [done[0].last.get("training_macs", 0) for done in ways]
            whole = [sum(each) for each in zip(search, training, strict=True)]
            costs = tuple(f"{100 * e / max(full, 1):.1f} %" for full, e in (search, whole))
        rows.append((backbone, claimed, *costs, *map(_cell, ways)))
    head = ("early of iterative", "published", "search", "with training")
    head += ("iterative ticket, %", "early ticket, %")
    return results.blocks("tickets", [markdown("Costs, and accuracy:", head, rows)])


def densities(results: Results) -> list[str]:
    """Accuracy against density."""
    tables = []
    titles = {
        "densities": "At full length:",
        "densities-minutes": "A thousand iterations a training:",
    }
    for study, title in titles.items():
        rows = []
        for case, done in results.cases(study):
            count = done[0].last.get("search_macs") if done else None
            name = f"{case.labels['backbone']}, {case.labels['search']}"
            kept = f"{100 * float(case.labels['density']):g} %"
            rows.append((name, kept, f"{count / 1e9:.1f} G" if count else "", _cell(done)))
        head = ("CIFAR-FS, 5-way 5-shot, width 64", "weights", "search MACs", "accuracy, %")
        tables += _unless_empty(title, head, rows)
    return results.blocks("densities", tables)


def patterns(results: Results) -> list[str]:
    """What tickets have in common: a picture of runs, whose checkpoints are not kept here."""
    return _picture_or_commands(
        results,
        "Densities of layers and channels, and overlaps of masks, of several tickets",
        ticket_patterns.PICTURE,
        "python -m benchmarks.study densities-minutes",
        "python -m benchmarks.ticket_patterns runs/densities-minutes/conv4-*-0.*/0",
    )


def convex(results: Results) -> list[str]:
    """Six learners, and how soon they reach an accuracy."""
    rows, times, names = [], [], []
    for shots, learners in published.CONVEX.items():
        for learner, (omniglot, mini) in learners.items():
            here = [f"{data}-{shots}-{learner}" for data in ("omniglot", "cifar-fs")]
            ours = [results.of("learners", name) for name in here]
            rows.append((f"{shots}, {learner}", f"{omniglot}", f"{mini}", *map(_cell, ours)))
            if ours[0]:
                reached = _reached(results.folder / "learners" / here[0], ours[0][0])
                times.append((f"{shots}, {learner}", *reached))
            names += here
    head = ("5-way", "Omniglot, published", "mini-ImageNet, published")
    tables = [markdown("Accuracy, %:", (*head, "Omniglot, ours", "CIFAR-FS, ours"), rows)]
    levels = tuple(f"{100 * level:g} %" for level in _LEVELS)
    title = "Seconds of one core to an accuracy on validation classes of Omniglot:"
    tables += _unless_empty(title, ("5-way", *levels), times)
    for task in TASKS:
        words = f"Accuracy, loss and gradient norm in training, {task}"
        tables += results.picture(words, training_curves.picture(task))
    return results.blocks("learners", tables, names)


def misclassified(results: Results) -> list[str]:
    """The images that most tasks get wrong: pictures of runs."""
    blocks = []
    for task in MISCLASSIFIED:
        words = f"Test images that most tasks get wrong, {task}"
        blocks += _picture_or_commands(
            results,
            words,
            errors.picture(task),
            f"python -m benchmarks.study learners --only {task}",
            f"python -m benchmarks.errors runs/learners/{task}/0",
        )
    return blocks


# Learners whose errors are shown: the best of each data set, and the convex head on the harder one.
MISCLASSIFIED = (
    *("omniglot-1shot-convex-imaml", "cifar-fs-1shot-convex-imaml"),
    "cifar-fs-5shot-protonet",
)

_LEVELS = (0.8, 0.9, 0.95)


def _reached(folder: Path, found: Measured) -> Row:
    """Processor seconds of training at the first validation of each level, or a dash."""
    records = metrics.read(Run(folder).metrics_path)
    before = sum(stage["max_seconds"] or 0 for stage in found.stages[:-1])
    validations = [r for r in records if r["kind"] != "train" and "elapsed" in r]
    cells = []
    for level in _LEVELS:
        first = next((r["elapsed"] for r in validations if r["accuracy"] >= level), None)
        cells.append("—" if first is None else f"{before + first:.0f}")
    return tuple(cells)


def _picture_or_commands(results: Results, words: str, path: Path, *commands: str) -> list[str]:
    return results.picture(words, path) or [_missing(*commands)]


def _missing(*commands: str) -> str:
    return "\n".join(["Not run yet:", "", "```text", *commands, "```", ""])


def _unless_empty(title: str, head: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """A table, unless no row of it was run."""
    run = any(MISSING not in row for row in rows)
    return [markdown(title, head, rows)] if run else []


def _cell(done: Done | None, otherwise: str = MISSING) -> str:
    """Accuracy, interval and length of a case."""
    if done is None:
        return otherwise
    found, result = done
    return f"{accuracy(result.numbers).removesuffix(' %')} ({found.last.get('iteration', 0)} it.)"


def _sized(case: Case, done: Done | None) -> Row:
    """A network by its size."""
    config = case.stages[-1]
    again = ", trained twice as long" if case.name.endswith("-again") else ""
    name = f"{config.ways}-way {config.shots}-shot, width {config.width}, {config.learner}{again}"
    return name, *_size(case, done), _cell(done)


def _size(case: Case, done: Done | None) -> Row:
    """Kernels in use, parameters and multiply-accumulates of a case's network, if it was run."""
    if done is None:
        return f"{100 * float(case.labels.get('budget', 1)):g} %", "", ""
    numbers = done[1].numbers
    channels = 1 if "omniglot" in case.stages[0].data else 3
    config = case.stages[0].replace(**{n: done[0].stages[0][n] for n in ("width", "image_size")})
    side = config.image_size or (28 if channels == 1 else 32)
    with torch.device("meta"):
        net = build.network(config.replace(initialization=None), (channels, side, side))
    weights = [block.conv.weight for block in net.blocks]
    dense = sum(w.shape[0] * w.shape[1] for w in weights)
    every = sum(p.numel() for p in net.parameters())
    pruned = dense * (1 - numbers["active"])
    parameters = every - 9 * pruned
    share = f"{100 * numbers['active']:.1f} %"
    return share, f"{parameters / 1e3:.1f} k", f"{numbers['macs'] / 1e6:.2f} M"


def _by_label(results: Results, study: str, *labels: str) -> dict[Row, list[Done]]:
    """The cases of a study that were run, by labels."""
    found: dict[Row, list[Done]] = {}
    for case, done in results.cases(study):
        key = tuple(case.labels[label] for label in labels)
        found.setdefault(key, []).extend([done] if done else [])
    return found


def _distributions(runs: Sequence[Done]) -> str:
    """Mean accuracy over runs, on each distribution."""
    if not runs:
        return MISSING
    parts = [result.numbers["distributions"] for _, result in runs]
    return " / ".join(f"{100 * fmean(p[name]['accuracy'] for p in parts):.1f}" for name in parts[0])


def _mean(runs: Sequence[Done]) -> str:
    """Mean over distributions and runs, and the standard deviation over the runs."""
    parts = [result.numbers["distributions"].values() for _, result in runs]
    each = [100 * fmean(p["accuracy"] for p in part) for part in parts]
    return f"{fmean(each):.2f}" + (f" ± {stdev(each):.2f}" if len(each) > 1 else "")


def _seconds(runs: Sequence[Done]) -> float | None:
    return fmean(found.seconds for found, _ in runs) if runs else None


def _seconds_an_iteration(runs: Sequence[Done]) -> float | None:
    each = [
        found.seconds / found.last["iteration"] for found, _ in runs if "iteration" in found.last
    ]
    return fmean(each) if each else None


SECTIONS: dict[str, Callable[[Results], list[str]]] = {
    make.__name__: make
    for make in (
        *(imaml, cifar_fs, long, budgets, kernels, gems, ablations),
        *(tickets, densities, patterns, convex, misclassified),
    )
}
