"""The options of ``metasparse train``, and the configuration of a run that they make."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from metasparse_ext.algorithms import LEARNERS, MetaLearner, find
from metasparse_ext.cli.messages import UserError, checked, known
from metasparse_ext.data import DATASETS
from metasparse_ext.data.cache import in_home
from metasparse_ext.data.registry import absolute
from metasparse_ext.nn.backbone import HeadInput
from metasparse_ext.nn.initial import INITIALIZATIONS
from metasparse_ext.nn.norm import Order
from metasparse_ext.presets import PRESETS
from metasparse_ext.training import RunConfig
from metasparse_ext.training.config import ON_NONFINITE, SCHEDULES

# Options of learners that have a flag of their own.
_LEARNER_FLAGS = (
    *("inner_lr", "inner_steps", "mode", "budget", "lambda3"),
    *("search", "density", "rounds", "rewind"),
)


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
    _field("--data", str, f"Data set: {', '.join(DATASETS)}, or an .npz file, as "
           "NAME[:PATH][,OPTION=VALUE]...; several joined by +; or sinusoid, or "
           "package.module:function that returns the data of a split."),
    _field("--root", str, "Folder of the data set's files."),
    _field("--image-size", int, "Resize images to this side."),
    _field("--rotations/--no-rotations", bool, "Rotate training classes by multiples of 90°."),
    _field("--augment", str, "Change training images at random: some of padding=N, flip, "
           "brightness=X, contrast=X, saturation=X, rotate, query=false, joined by commas."),
    _field("--ways", int, "Classes per task."),
    _field("--shots", int, "Support images per class."),
    _field("--queries", int, "Query images per class."),
    _field("--evaluation-queries", int, "Query images per class of validation and evaluation."),
    _field("--tasks", int, "Tasks per meta-batch."),
    click.option("--model", "--backbone", "model",
                 help="Network: conv4, resnet12, mlp, or package.module:function that makes one.  "
                 "[default: conv4; mlp where inputs are no images]"),
    _field("--loss", str, "What tasks minimize in place of the cross-entropy: mse, mae, or "
           "package.module:function of outputs and targets."),
    _field("--metric", str, "What is reported in place of accuracy, named like a loss."),
    _field("--width", int, "Channels of Conv-4's blocks, or of ResNet-12's first."),
    _field("--strided/--pooled", bool, "Strided convolutions in Conv-4, or max-pools."),
    _field("--block-order", click.Choice(get_args(Order)),
           "Norm, activation and pool in a block of Conv-4."),
    _field("--head", click.Choice(get_args(HeadInput)),
           "Feed the head the whole last map, or its spatial mean."),
    _field("--initialization", click.Choice(tuple(INITIALIZATIONS)),
           "Initial weights of a source, in place of the model's own."),
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
    _field("--optimizer", str, "Outer optimizer: adam, sgd, or package.module:function that makes "
           "one, such as torch.optim:AdamW."),
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
    _field("--memory", str, "Compute as many tasks at a time as fit into so much, such as 2GiB."),
    _field("--capture/--no-capture", bool, "On a GPU: a meta-step as one CUDA graph, or not."),
)  # fmt: skip


def preset_fields(name: str | None, learner: str | None, longer: bool) -> dict[str, Any]:
    """The fields of the preset of a name, if there is one.

    Args:
        name: The preset.
        learner: The learner that was named, if one was; it must be the preset's.
        longer: Whether the training is of another length than the preset's, which sets
            ``total_iterations`` too.
    """
    if name is None:
        return {}
    fields = PRESETS[known("preset", name, PRESETS)].settings()
    if learner not in (None, fields["learner"]):
        raise UserError(f"preset {name} is of {fields['learner']}, not of {learner}")
    if longer and fields["options"].get("total_iterations") == fields["iterations"]:
        del fields["options"]["total_iterations"]
    return fields


def base_fields(
    learner: str | None, given: Mapping[str, Any], file: Mapping[str, Any]
) -> dict[str, Any]:
    """What flags are added to: the fields of a file over those of a preset."""
    preset = given.get("preset", file.get("preset"))
    longer = "iterations" in given or "iterations" in file
    return over(preset_fields(preset, learner or file.get("learner"), longer), file)


def over(base: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file over others; its options over theirs, where the learner is the same."""
    same = file.get("learner", base.get("learner")) == base.get("learner")
    options = {**(base.get("options", {}) if same else {}), **file.get("options", {})}
    return {**base, **file, "options": options}


def configure(learner: str | None, given: Mapping[str, Any], base: Mapping[str, Any]) -> RunConfig:
    """The configuration ``base`` with the flags that were given."""
    learner = learner or base.get("learner")
    if learner is None:
        raise UserError(
            "expected a LEARNER, or a --config or --preset that names one: "
            "`metasparse learners` lists them"
        )
    kind = find_learner(learner)
    _require_options(learner, kind, base.get("options", {}))
    options = {**base.get("options", {}), **_chosen_options(learner, kind, given)}
    names = {entry.name for entry in dataclasses.fields(RunConfig)}
    fields = {name: value for name, value in given.items() if name in names}
    values: dict[str, Any] = {**base, **fields, "learner": learner, "options": options}
    # A run is looked at from other folders than the one it was trained in.
    if isinstance(values.get("data"), str):
        values["data"] = absolute(values["data"])
    if isinstance(values.get("root"), str) and values["root"]:
        values["root"] = str(checked(lambda: in_home(values["root"]).absolute()))
    return checked(lambda: RunConfig.from_dict(values))


def _chosen_options(
    learner: str, kind: type[MetaLearner], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The learner's options among the flags, checked against its constructor."""
    chosen = {name: given[name] for name in _LEARNER_FLAGS if name in given}
    if "order" in given:
        chosen["first_order"] = given["order"] == "first"
    settings = dict(_setting(text) for text in given.get("settings", ()))
    options = learner_options(kind)
    for name in (*chosen, *settings):
        if name not in options:
            flag = "--order" if name == "first_order" and name in chosen else name
            near = difflib.get_close_matches(flag, options, 1)
            hint = f": did you mean {near[0]}?" if near else f"; it has {', '.join(options)}"
            raise UserError(f"{learner} has no option {flag}{hint}")
    for name in {"loss", "metric"} & settings.keys():
        raise UserError(f"--set {name}: expected --{name} NAME")
    for name, text in settings.items():
        try:
            chosen[name] = read(text, options[name].annotation)
        except ValueError as error:
            raise UserError(f"{learner}: {name}: {error}") from error
    return chosen


def _require_options(learner: str, kind: type[MetaLearner], names: Iterable[str]) -> None:
    """Refuses options of a file or a preset that the learner has not."""
    _, *parameters = inspect.signature(kind).parameters.values()  # the first is the model
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    there = [p.name for p in parameters]
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(there)}"
            raise UserError(f"{learner} has no option {name!r}: {hint}")


def learner_options(kind: type[MetaLearner]) -> dict[str, Parameter]:
    """The keyword arguments of the constructor, by name."""
    parameters = inspect.signature(kind, eval_str=True).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def find_learner(name: str) -> type[MetaLearner]:
    """The learner of a registered name, or of ``package.module:Class``."""
    if isinstance(name, str) and ":" in name:
        return checked(lambda: find(name))
    return LEARNERS[known("learner", name, LEARNERS)]


def _setting(text: str) -> tuple[str, str]:
    """KEY=VALUE in two; dashes in a key are underscores."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise UserError(f"--set: expected KEY=VALUE, got {text!r}")
    return key.strip().replace("-", "_"), value.strip()


def read(text: str, annotation: Any) -> Any:
    """The value of an option, read from the text after ``--set KEY=``.

    Args:
        text: A Python literal, true, false or none in any case, or a word; for a sequence several
            of them, with commas between.
        annotation: The type that the learner's constructor declares, such as ``int | None``. One
            that could not be evaluated, a string, takes every value.

    Raises:
        ValueError: if the text is nothing of that type; the message says what was expected.
    """
    several = [_literal(part.strip()) for part in text.split(",") if part.strip()]
    for value in (_literal(text), several):
        if _fits(value, annotation):
            return value
    expected = inspect.formatannotation(annotation).replace("collections.abc.", "")
    raise ValueError(f"expected {expected}, got {text!r}")


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is Sequence:
        return isinstance(value, tuple | list) and all(_fits(entry, parts[0]) for entry in value)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
