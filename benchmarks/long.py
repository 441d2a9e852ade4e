"""Long trainings: hours of one core each, towards the accuracies that the sources publish.

Width 64 and large meta-batches; everything else is as in :mod:`benchmarks.studies`. They are made
to be interrupted: the same command goes on where the last one was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.studies import TASKS, Budget, Case, config

FULL = {"width": 64, "tasks": 16, "queries": 5, "validate_every": 1000, "validation_tasks": 300}
# Pooled blocks, as the sources' on images of this size, and smaller meta-batches for their price.
POOLED = {**FULL, "strided": False, "tasks": 4, "queries": 10}
FEW_STEPS = {"inner_lr": 0.1, "inner_steps": 3, "adapt_steps": 10}

# By task and learner: what differs from the settings of minutes.
TRAININGS: dict[tuple[str, str], dict[str, object]] = {
    ("omniglot-1shot", "maml"): {**FULL, "iterations": 20_000, "meta_lr": 2e-3},
    ("omniglot-1shot", "imaml"): {**FULL, "iterations": 20_000},
    ("omniglot-1shot", "convex-imaml"): {**FULL, "iterations": 20_000},
    ("omniglot-5shot", "maml"): {**FULL, "iterations": 10_000, "meta_lr": 2e-3, "tasks": 8},
    ("omniglot-5shot", "convex-imaml"): {**FULL, "iterations": 10_000, "tasks": 8},
    ("cifar-fs-1shot", "maml"): {**POOLED, "iterations": 30_000, "options": FEW_STEPS},
    ("cifar-fs-5shot", "maml"): {**POOLED, "iterations": 20_000, "options": FEW_STEPS},
}


def long(budget: Budget) -> Iterator[Case]:
    """The trainings of :data:`TRAININGS`."""
    for (task, learner), changes in TRAININGS.items():
        made = config(learner, **{**TASKS[task], **changes})
        yield Case(f"{task}-{learner}", (budget.of(made),), {"task": task, "learner": learner})
