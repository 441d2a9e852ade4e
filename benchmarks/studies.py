"""What the studies train: every case as data.

The learners share all settings but their own; those of the outer loop differ only where the source
of a learner asks for it. MAML's rates are those of the committed Omniglot run; the others start
from their sources and have not been searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.training import RunConfig


@dataclass(frozen=True)
class Case:
    """One row of a study.

    Attributes:
        name: The folder of its results.
        stages: Configurations that are trained one after the other; each starts from the best
            network of the one before it.
        labels: What the row is about, for the table.
    """

    name: str
    stages: tuple[RunConfig, ...]
    labels: dict[str, str]


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
    "tasks": 8,
    "queries": 5,
    "schedule": "cosine",
    "iterations": 4000,
    "validate_every": 500,
    "validation_tasks": 200,
    "log_every": 20,
}
TASKS = {
    "omniglot-1shot": {"data": "omniglot", "shots": 1, "rotations": True},
    "omniglot-5shot": {"data": "omniglot", "shots": 5, "rotations": True},
    "cifar-fs-5shot": {"data": "cifar-fs", "shots": 5},
}
SETTINGS = {
    "maml": {"options": {"inner_lr": 0.4, "inner_steps": 1, "adapt_steps": 5}},
    "fomaml": {"options": {"inner_lr": 0.1, "inner_steps": 5}},
    "imaml": {"options": {"mode": "paper", "inner_lr": 0.1, "inner_steps": 5, "lam": 1.0,
                          "cg_steps": 4}},
    "metadock": {"options": {"mode": "paper", "inner_lr": 0.1, "inner_steps": 5, "cg_steps": 4,
                             "budget": 0.5, "lambda1": 1.0, "lambda4": 0.0,
                             "total_iterations": 500},
                 "mask_lr": 2e-4},
    "convex-maml": {"options": {"inner_lr": 0.5, "inner_steps": 5}},
    "convex-imaml": {"options": {"lam": 0.01}},
    "reptile": {"options": {"inner_lr": 1e-3, "inner_steps": 5}, "optimiser": "sgd",
                "meta_lr": 1.0, "schedule": "linear"},
    "cavia": {"options": {"inner_lr": 1.0, "inner_steps": 2}},
    "bmp": {"options": {"inner_lr": 0.1, "inner_steps": 5}},
    "mmsup": {"options": {"inner_lr": 0.1, "inner_steps": 5}},
    "multi-maml": {"options": {"inner_lr": 0.4, "inner_steps": 1, "adapt_steps": 5}},
    "meta-ticket": {"options": {"inner_lr": 0.4, "inner_steps": 1, "adapt_steps": 5,
                                "search": "early"}},
}  # fmt: skip


def config(learner: str, **fields: object) -> RunConfig:
    """The settings of a learner on some task."""
    return RunConfig(**{**BASE, "learner": learner, **SETTINGS[learner], **fields})


def learners(budget: Budget) -> Iterator[Case]:
    """Every learner on every task, at the same cost; one name of each learner."""
    for task, fields in TASKS.items():
        for name, kind in LEARNERS.items():
            if name != next(other for other in LEARNERS if LEARNERS[other] is kind):
                continue
            stages = (budget.of(config(name, **fields)),)
            if name == "metadock":  # half for the dense network that it prunes
                dense = budget.of(config("maml", **fields), 0.5)
                stages = dense, budget.of(config(name, **fields), 0.5)
            yield Case(f"{task}-{name}", stages, {"task": task, "learner": name})


BACKBONES = {
    "conv4": {"backbone": "conv4", "width": 64},
    "resnet12": {"backbone": "resnet12", "width": 16, "tasks": 4, "iterations": 500,
                 "validate_every": 250},
}  # fmt: skip


def tickets(budget: Budget) -> Iterator[Case]:
    """A dense parent, its ticket of a fifth of the weights by iterative pruning, and by early
    detection; every training as long as the parent's."""
    maml = SETTINGS["maml"]["options"]
    ways = {
        "dense": ("maml", {}),
        "iterative": ("meta-ticket", {"search": "iterative", "density": 0.2}),
        "early": ("meta-ticket", {"search": "early", "density": 0.2}),
    }
    for backbone, network in BACKBONES.items():
        for way, (learner, options) in ways.items():
            fields = {**TASKS["omniglot-1shot"], **network, "options": {**maml, **options}}
            made = budget.of(config(learner, **fields))
            yield Case(f"{backbone}-{way}", (made,), {"backbone": backbone, "ticket": way})


def mixtures(budget: Budget) -> Iterator[Case]:
    """Learners of several distributions beside one MAML, with three seeds."""
    fields = {"data": "omniglot+cifar-fs", "shots": 5}
    for learner in ("maml", "multi-maml", "bmp", "mmsup"):
        for seed in range(3):
            made = budget.of(config(learner, seed=seed, **fields))
            yield Case(f"{learner}-{seed}", (made,), {"learner": learner, "seed": str(seed)})


STUDIES: dict[str, Callable[[Budget], Iterator[Case]]] = {
    "learners": learners,
    "tickets": tickets,
    "mixtures": mixtures,
}
