"""The options of ``metasparse train``: a run's fields, and the learners' commonest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from metasparse_ext.training import RunConfig
from metasparse_ext.training.config import BACKBONES, ON_NONFINITE, OPTIMIZERS, SCHEDULES


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Several click options as one decorator, shown in the order given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _field(flag: str, kind: Any, text: str) -> Callable[..., Any]:
    """An option for a field of RunConfig, whose default it shows."""
    name = flag.lstrip("-").split("/")[0].replace("-", "_")
    value = getattr(RunConfig, name)
    if isinstance(value, bool):
        value = [word.lstrip("-") for word in flag.split("/")][not value]
    shown = "" if value is None else f"  [default: {value}]"
    return click.option(flag, name, type=kind, default=None, help=text + shown)


run_options = _options(
    click.option("--preset", help="Published settings to start from: `metasparse presets`."),
    _field("--data", str, "Data set: glyphs, omniglot, cifar-fs or folder; several joined by +."),
    _field("--root", str, "Folder of the data set's files."),
    _field("--image-size", int, "Resize images to this side."),
    _field("--rotations/--no-rotations", bool, "Rotate training classes by multiples of 90°."),
    _field("--ways", int, "Classes per task."),
    _field("--shots", int, "Support images per class."),
    _field("--queries", int, "Query images per class."),
    _field("--evaluation-queries", int, "Query images per class of validation and evaluation."),
    _field("--tasks", int, "Tasks per meta-batch."),
    _field("--backbone", click.Choice(BACKBONES), "Network."),
    _field("--width", int, "Channels of Conv-4's blocks, or of ResNet-12's first."),
    _field("--strided/--pooled", bool, "Strided convolutions in Conv-4, or max-pools."),
    _field("--iterations", int, "Meta-iterations."),
    _field("--max-seconds", float, "Train for so many seconds of processor time instead."),
    click.option("--inner-lr", type=float, help="Learning rate of adaptation."),
    click.option("--inner-steps", type=int, help="Steps of adaptation."),
    click.option("--order", type=click.Choice(["first", "second"]),
                 help="Order of MAML's gradient."),
    click.option("--mode", type=click.Choice(["paper", "official"]),
                 help="Follow the paper or the official code."),
    click.option("--budget", type=float, help="Fraction of kernels to keep."),
    click.option("--lambda3", type=float, help="Final weight of the budget loss."),
    click.option("--search", type=click.Choice(["iterative", "early"]),
                 help="How meta-ticket finds its weights."),
    click.option("--density", type=float, help="Fraction of the weights that a ticket keeps."),
    click.option("--rounds", type=int, help="Prunings of the search."),
    click.option("--rewind", type=int, help="Iteration that a ticket's weights return to."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                 help="Any other option of the learner; repeatable."),
    _field("--optimizer", click.Choice(OPTIMIZERS), "Outer optimizer."),
    _field("--meta-lr", float, "Learning rate of the outer optimizer."),
    _field("--mask-lr", float, "The same for mask scores; by default --meta-lr."),
    _field("--adam-eps", float, "Adam's epsilon."),
    _field("--schedule", click.Choice(SCHEDULES), "Schedule of the outer rate."),
    _field("--clip-norm", float, "Clip the meta-gradient's norm."),
    _field("--clip-value", float, "Clip each element of the meta-gradient."),
    _field("--on-nonfinite", click.Choice(ON_NONFINITE),
           "After a meta-step that is not finite: end the run, leave the step out, or leave it out "
           "and halve the outer rates."),
    _field("--init-from", str, "Run whose network is the start, such as a dense pre-training."),
    _field("--seed", int, "Seed of weights and episodes."),
    _field("--validate-every", int, "Iterations between validations."),
    _field("--validation-tasks", int, "Tasks of a validation."),
    _field("--validation-split", click.Choice(["val", "test"]),
           "Split that chooses the best checkpoint."),
    _field("--evaluation-tasks", int, "Tasks of `metasparse evaluate`."),
    _field("--transductive/--no-transductive", bool, "Batch statistics over all queries, or not."),
    _field("--workers", int, "Threads that draw episodes ahead."),
    _field("--save-every", int, "Iterations between checkpoints."),
    _field("--log-every", int, "Iterations between lines of metrics."),
    _field("--device", str, "Torch device."),
    _field("--capture/--no-capture", bool, "On a GPU: a meta-step as one CUDA graph, or not."),
)  # fmt: skip
