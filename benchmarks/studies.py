"""What the studies train: every case as data.

The learners share all settings but their own. MAML's outer rate and meta-batch, and iMAML's lambda
and curvature, are the best of a few short trainings on Omniglot's validation classes; a narrow
network and few queries learn most in little time. The others' settings start from their sources and
have not been searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from metasparse_ext.training import RunConfig


@dataclass(frozen=True)
class Case:
    """One row of a study.

    Attributes:
        name: The folder of its results.
        stages: Configurations that are trained one after the other; each starts from the best
            network of the one before it.
        labels: What the row is about, for the table.
        parent: The case from whose best network the first stage starts. Many may share one.
    """

    name: str
    stages: tuple[RunConfig, ...]
    labels: dict[str, str]
    parent: Case | None = None


@dataclass(frozen=True)
class Budget:
    """What a case may take: seconds of processor time, or iterations of a training."""

    seconds: float | None = None
    iterations: int | None = None

    def of(self, config: RunConfig, share: float = 1.0) -> RunConfig:
        """The configuration with a share of the budget."""
        if self.seconds is not None:
            return config.replace(max_seconds=self.seconds * share)
        if self.iterations is not None:
            return config.replace(iterations=max(1, round(self.iterations * share)))
        return config


BASE = {
    "width": 32,
    "tasks": 8,
    "queries": 2,
    "evaluation_queries": 15,
    "meta_lr": 3e-3,
    "schedule": "cosine",
    "iterations": 8000,
    "validate_every": 2000,
    "validation_tasks": 200,
    "log_every": 20,
}
FIVE_SHOTS = {"shots": 5, "queries": 5, "tasks": 4}
TASKS = {
    "omniglot-1shot": {"data": "omniglot", "shots": 1, "rotations": True},
    "omniglot-5shot": {"data": "omniglot", "rotations": True, **FIVE_SHOTS},
    "cifar-fs-1shot": {"data": "cifar-fs", "shots": 1},
    "cifar-fs-5shot": {"data": "cifar-fs", **FIVE_SHOTS},
}
MAML = {"inner_lr": 0.4, "inner_steps": 1, "adapt_steps": 10}
FIVE_STEPS = {"inner_lr": 0.1, "inner_steps": 5, "adapt_steps": 10}
IMPLICIT = {**FIVE_STEPS, "mode": "paper", "cg_steps": 4, "curvature": "ggn"}
SETTINGS = {
    "maml": {"options": MAML},
    "fomaml": {"options": FIVE_STEPS},
    "imaml": {"options": {**IMPLICIT, "lam": 0.25}, "meta_lr": 2e-3, "tasks": 4, "queries": 5},
    "metadock": {"options": {**IMPLICIT, "budget": 0.5, "lambda1": 0.25, "lambda3": 5.0,
                             "lambda4": 0.0, "total_iterations": 500},
                 "meta_lr": 2e-3, "mask_lr": 1e-4, "tasks": 4, "queries": 5},
    "convex-maml": {"options": {"inner_lr": 0.5, "inner_steps": 5, "adapt_steps": 10}},
    "convex-imaml": {"options": {"lam": 0.01}, "meta_lr": 2e-3},
    "protonet": {"options": {}},
    "r2d2": {"options": {}},
    "reptile": {"options": {"inner_lr": 3e-3, "inner_steps": 8}, "optimizer": "sgd",
                "meta_lr": 1.0, "schedule": "linear", "tasks": 4, "queries": 5},
    "cavia": {"options": {"inner_lr": 1.0, "inner_steps": 2}, "meta_lr": 1e-3},
    "bmp": {"options": {**MAML, "through_weights": False}},
    "mmsup": {"options": MAML},
    "multi-maml": {"options": MAML},
    "meta-ticket": {"options": {**MAML, "search": "early"}},
}  # fmt: skip


def config(learner: str, **fields: object) -> RunConfig:
    """The settings of a learner on some task."""
    return RunConfig(**{**BASE, "learner": learner, **SETTINGS[learner], **fields})


# Processor seconds of a case of the learners' study, where none are given.
SECONDS = {
    **{"omniglot-1shot": 480.0, "omniglot-5shot": 300.0},
    **{"cifar-fs-1shot": 300.0, "cifar-fs-5shot": 300.0},
}


def learners(given: Budget) -> Iterator[Case]:
    """Every learner on every task, at the same cost on a task, by its name in ``SETTINGS``.

    Multi-MAML is left out: on one distribution it is MAML.
    """
    for task, fields in TASKS.items():
        budget = Budget(SECONDS[task]) if given == Budget() else given
        for name in SETTINGS:
            if name == "multi-maml":
                continue
            stages = (budget.of(config(name, **fields)),)
            if name == "metadock":  # it prunes a network that learns fast
                dense = budget.of(config("convex-imaml", **fields), 0.4)
                stages = dense, budget.of(config(name, **fields), 0.6)
            yield Case(f"{task}-{name}", stages, {"task": task, "learner": name})


BACKBONES = {
    "conv4": {"model": "conv4", "iterations": 1000},
    "resnet12": {"model": "resnet12", "width": 8, "tasks": 4, "iterations": 1000},
}
# When each early search looks: chosen by cost, for the source's share of the iterative search's, on
# the seed of the study.
EARLY = {
    "conv4": {"check_every": 25, "threshold": 0.3},
    "resnet12": {"threshold": 0.25},
}


def tickets(budget: Budget) -> Iterator[Case]:
    """A dense parent, its ticket of a fifth of the weights by iterative pruning, and by early
    detection; every training as long as the parent's. Both prune in four rounds. The early one's
    weights go on from where they are, as those of Early-Bird tickets do."""
    ticket = {**MAML, "density": 0.2, "rounds": 4}
    for backbone, network in BACKBONES.items():
        ways = {
            "dense": ("maml", MAML),
            "iterative": ("meta-ticket", {**ticket, "search": "iterative", "rewind": 200}),
            "early": (
                "meta-ticket",
                {**ticket, "search": "early", "rewind": None, **EARLY[backbone]},
            ),
        }
        for way, (learner, options) in ways.items():
            fields = {**TASKS["omniglot-1shot"], **network, "options": options}
            made = budget.of(config(learner, **fields))
            yield Case(f"{backbone}-{way}", (made,), {"backbone": backbone, "ticket": way})


def mixtures(budget: Budget) -> Iterator[Case]:
    """Learners of several distributions beside one MAML, with three seeds."""
    fields = {"data": "omniglot+cifar-fs", **FIVE_SHOTS}
    for learner in ("maml", "multi-maml", "bmp", "mmsup"):
        for seed in range(3):
            made = budget.of(config(learner, seed=seed, **fields))
            yield Case(f"{learner}-{seed}", (made,), {"learner": learner, "seed": str(seed)})


STUDIES: dict[str, Callable[[Budget], Iterator[Case]]] = {
    "learners": learners,
    "tickets": tickets,
    "mixtures": mixtures,
}
