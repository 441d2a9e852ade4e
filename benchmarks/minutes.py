"""The studies of :mod:`benchmarks.sources` for minutes of one core each.

In their sources' settings they take days. Here the networks and images are the sources', and the
rates and meta-batches those of :mod:`benchmarks.studies`, which learn most in little time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from benchmarks.sources import PAIRS, SPARSITIES
from benchmarks.studies import FIVE_SHOTS, FIVE_STEPS, MAML, SETTINGS, TASKS, Budget, Case, config

# Processor seconds of a training, or iterations, where none are given.
SECONDS = {"budgets": 600.0, "ablations": 60.0, "gems": 60.0, "hessian-free": 480.0}
ITERATIONS = 1000
SEEDS = range(3)


def _budget(study: str, given: Budget) -> Budget:
    return Budget(SECONDS[study]) if given == Budget() else given


def budgets(given: Budget) -> Iterator[Case]:
    """A dense iMAML, itself trained for as long again, and MetaDOCK from it."""
    budget = _budget("budgets", given)
    for shots in (5, 1):
        task, wide = f"cifar-fs-{shots}shot", {"width": 64, "tasks": 4, "queries": 5}
        labels = {"task": f"5way-{shots}shot", "width": "64", "budget": "1"}
        dense = budget.of(config("imaml", **{**TASKS[task], **wide}))
        parent = Case(f"{shots}shot-64-1", (dense,), {**labels, "training": "once"})
        yield parent
        yield Case(f"{shots}shot-64-1-again", (dense,), {**labels, "training": "twice"}, parent)
        for kept in (0.5, 0.25, 0.125):
            options = {**SETTINGS["metadock"]["options"], "budget": kept}
            made = config("metadock", **{**TASKS[task], **wide, "options": options})
            name, found = f"{shots}shot-64-{kept:g}", {"budget": f"{kept:g}", "training": "twice"}
            yield Case(name, (budget.of(made),), {**labels, **found}, parent)


def gems(given: Budget) -> Iterator[Case]:
    """The second pair of distributions: the first is the study ``mixtures``."""
    budget = _budget("gems", given)
    for learner, seed in product(("maml", "multi-maml", "bmp", "mmsup"), SEEDS):
        made = budget.of(config(learner, seed=seed, data=PAIRS[1], **FIVE_SHOTS))
        labels = {"data": PAIRS[1], "learner": learner, "seed": str(seed)}
        yield Case(f"{PAIRS[1]}-{learner}-{seed}", (made,), labels)


def ablations(given: Budget) -> Iterator[Case]:
    """Steps, fast rate (five steps) and fixed sparsity (one step) of BMP and MMSUP."""
    budget = _budget("ablations", given)
    own = {name: SETTINGS[name]["options"] for name in ("bmp", "mmsup")}
    rows: list[tuple[str, str, str, dict[str, object]]] = []
    for learner in own:
        rows += [
            ("steps", learner, str(n), {"inner_lr": 0.1, "inner_steps": n}) for n in range(1, 6)
        ]
        rows += [
            ("rate", learner, f"{rate:g}", {**FIVE_STEPS, "inner_lr": rate})
            for rate in (0.5, 0.1, 0.05, 0.005, 0.001)
        ]
    for sparsity in SPARSITIES:
        fixed = {"density": 1 - sparsity, "learn_density": False}
        rows.append(("sparsity", "mmsup", f"{sparsity:g}", fixed))
    for axis, learner, value, options in rows:
        options = {**own[learner], **options}
        made = config(learner, data=PAIRS[0], seed=21, **{**FIVE_SHOTS, "options": options})
        labels = {"axis": axis, "learner": learner, "value": value}
        yield Case(f"{axis}-{learner}-{value}", (budget.of(made),), labels)


def densities(given: Budget) -> Iterator[Case]:
    """Winning tickets of several densities on CIFAR-FS, by both searches, Conv-4 of width 64."""
    budget = Budget(iterations=ITERATIONS) if given == Budget() else given
    searches = {
        "iterative": {"search": "iterative", "rewind": 200, "rounds": 4},
        "early": {
            "search": "early",
            "rewind": None,
            "rounds": 4,
            "threshold": 0.3,
            "check_every": 25,
        },
    }
    fields = {**TASKS["cifar-fs-5shot"], "width": 64, "iterations": ITERATIONS}
    labels = {"backbone": "conv4", "search": "dense", "density": "1"}
    yield Case("conv4-dense", (budget.of(config("maml", **fields)),), labels)
    for (search, options), density in product(searches.items(), (0.5, 0.2, 0.1, 0.05)):
        options = {**MAML, **options, "density": density}
        made = budget.of(config("meta-ticket", **{**fields, "options": options}))
        labels = {"backbone": "conv4", "search": search, "density": f"{density:g}"}
        yield Case(f"conv4-{search}-{density:g}", (made,), labels)


def hessian_free(given: Budget) -> Iterator[Case]:
    """iMAML with the Hessian-free inner solver, beside the ``learners`` of that study."""
    budget = _budget("hessian-free", given)
    changes = {"inner": "hessian_free", "inner_steps": 3, "adapt_steps": 3}
    for shots in (1, 5):
        task = f"omniglot-{shots}shot"
        options = {**SETTINGS["imaml"]["options"], **changes}
        made = budget.of(config("imaml", **{**TASKS[task], "options": options}))
        labels = {"task": task, "learner": "imaml, Hessian-free"}
        yield Case(f"{task}-imaml-hessian-free", (made,), labels)


MINUTES: dict[str, Callable[[Budget], Iterator[Case]]] = {
    "budgets-minutes": budgets,
    "gems-minutes": gems,
    "ablations-minutes": ablations,
    "densities-minutes": densities,
    "hessian-free-minutes": hessian_free,
}
