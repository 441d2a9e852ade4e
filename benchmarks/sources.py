"""The tables and figures of the sources as studies: every case in its source's own setting.

A budget shortens them: without one a case is as long as its source's, which takes hours to days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from benchmarks.studies import BASE, MAML, Budget, Case
from metasparse_ext.presets import preset
from metasparse_ext.training import RunConfig

SEEDS = (21, 42, 56)
PAIRS = ("omniglot+cifar-fs", "omniglot+glyphs")
SPARSITIES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))


def published(name: str, budget: Budget, **changes: object) -> RunConfig:
    """A preset as a run, of the length that the budget says, which MetaDOCK's budget follows."""
    fields = {**preset(name).settings(), "preset": name}
    options = {**fields["options"], **changes.pop("options", {})}
    options.pop("total_iterations", None)
    return budget.of(RunConfig(**{**fields, **changes, "options": options}))


def imaml(budget: Budget) -> Iterator[Case]:
    """iMAML's table 2: Omniglot, whose classes are turned in the tests of iMAML too."""
    for ways, shots in product((5, 20), (1, 5)):
        task = f"{ways}way-{shots}shot"
        for learner in ("maml", "fomaml", "imaml", "reptile"):
            made = published(f"{learner}/omniglot/{task}", budget)
            yield Case(f"{task}-{learner}", (made,), {"task": task, "learner": learner})
        options = {"mode": "paper", "inner": "hessian_free", "adapt_lam": None, "inner_steps": 3}
        made = published(f"imaml/omniglot/{task}", budget, options=options)
        labels = {"task": task, "learner": "imaml, Hessian-free"}
        yield Case(f"{task}-imaml-hessian-free", (made,), labels)


def budgets(budget: Budget) -> Iterator[Case]:
    """MetaDOCK's figures 2 and 3: dense iMAML, and pruned to a half, a quarter and an eighth."""
    for shots, width in product((1, 5), (64, 128)):
        task = f"cifar-fs/5way-{shots}shot"
        labels = {"task": f"5way-{shots}shot", "width": str(width)}
        made = published(f"imaml/{task}", budget, width=width)
        dense = Case(f"{shots}shot-{width}-1", (made,), {**labels, "budget": "1"})
        yield dense
        for kept in (0.5, 0.25, 0.125):
            options = {"budget": kept}
            made = published(f"metadock/{task}", budget, width=width, options=options)
            name = f"{shots}shot-{width}-{kept:g}"
            yield Case(name, (made,), {**labels, "budget": f"{kept:g}"}, dense)


# What the supplement of GEMS states; the images are those at hand.
GEMS = {
    **{"strided": False, "image_size": 32, "ways": 5, "shots": 1, "queries": 15, "tasks": 5},
    **{"iterations": 30_000, "meta_lr": 1e-4},
}
FIVE_STEPS = {"inner_lr": 0.01, "inner_steps": 5}


def gems(budget: Budget) -> Iterator[Case]:
    """Table 2 of GEMS' supplement, on other pairs of distributions, with its three seeds."""
    learners = ("maml", "multi-maml", "bmp", "mmsup")
    for pair, learner, seed in product(PAIRS, learners, SEEDS):
        made = RunConfig(learner=learner, data=pair, seed=seed, options=FIVE_STEPS, **GEMS)
        labels = {"data": pair, "learner": learner, "seed": str(seed)}
        yield Case(f"{pair}-{learner}-{seed}", (budget.of(made),), labels)


def ablations(budget: Budget) -> Iterator[Case]:
    """The ablations of GEMS: adaptation steps, fast rate, and a fixed sparsity of MMSUP."""
    axes: dict[str, list[tuple[str, str, dict[str, object]]]] = {
        "steps": [
            (learner, str(steps), {"inner_steps": steps})
            for learner, steps in product(("bmp", "mmsup"), range(1, 6))
        ],
        "rate": [
            (learner, f"{rate:g}", {"inner_lr": rate})
            for learner, rate in product(("bmp", "mmsup"), (0.1, 0.5, 0.05, 0.001, 0.005))
        ],
        "sparsity": [
            ("mmsup", f"{sparsity:g}", {"density": 1 - sparsity, "learn_density": False})
            for sparsity in SPARSITIES
        ],
    }
    for axis, settings in axes.items():
        for learner, value, options in settings:
            options = {**FIVE_STEPS, **options}
            made = RunConfig(learner=learner, data=PAIRS[0], seed=SEEDS[0], options=options, **GEMS)
            labels = {"axis": axis, "learner": learner, "value": value}
            yield Case(f"{axis}-{learner}-{value}", (budget.of(made),), labels)


def densities(budget: Budget) -> Iterator[Case]:
    """Winning tickets of several densities, on CIFAR-FS at full width, by both searches."""
    backbones = {"conv4": {"model": "conv4"}, "resnet12": {"model": "resnet12", "tasks": 4}}
    early = {"search": "early", "rewind": None, "rounds": 4}
    searches = {"iterative": {"search": "iterative", "rewind": 200}, "early": early}
    fields = {**BASE, "data": "cifar-fs", "width": 64, "shots": 5, "queries": 5}
    for backbone, network in backbones.items():
        made = RunConfig(learner="maml", options=MAML, **{**fields, **network})
        labels = {"backbone": backbone, "search": "dense", "density": "1"}
        yield Case(f"{backbone}-dense", (budget.of(made),), labels)
        for (search, options), density in product(searches.items(), (0.5, 0.2, 0.1, 0.05)):
            options = {**MAML, **options, "density": density}
            made = RunConfig(learner="meta-ticket", options=options, **{**fields, **network})
            labels = {"backbone": backbone, "search": search, "density": f"{density:g}"}
            yield Case(f"{backbone}-{search}-{density:g}", (budget.of(made),), labels)


SOURCES: dict[str, Callable[[Budget], Iterator[Case]]] = {
    "imaml": imaml,
    "budgets": budgets,
    "gems": gems,
    "ablations": ablations,
    "densities": densities,
}
