"""What learners, training, presets and figures say of arguments that cannot be right.

CALLS holds a valid call of every public function and class; one argument at a time is replaced.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from support.bad_values import VALUES, Call, complaint
from support.plain_tasks import batch, network
from torch import nn

from metasparse_ext import algorithms, plots, presets, training
from metasparse_ext.algorithms import (
    ANIL,
    IMAML,
    LEARNERS,
    MAML,
    AdaptedTasks,
    ConvexIMAML,
    Reptile,
)
from metasparse_ext.algorithms.task_networks import cross_entropy
from metasparse_ext.data import TaskBatch
from metasparse_ext.training import Run, RunConfig, evaluation

# What is only made by others here: base classes, results, errors, and what is told of a training.
NOT_CALLED = {
    *("LEARNERS", "PRESETS", "ConvexMAML", "HeadLearner", "MetaLearner", "Metrics", "Outcome"),
    *("CheckpointError", "RunInUseError", "TrainingError", "Reporter"),
    *("TensorBoard", "WandB"),
    *("AdaptedTask", "Prediction", "Trained", "Comparison", "Contender", "Difference"),
}

TENSORS = tuple(name for name in VALUES if name.endswith("tensor"))
DENSE = tuple(name for name in TENSORS if name != "sparse tensor")

# The wrong values that are right for an annotation.
FITS: dict[Any, tuple[str, ...]] = {
    float: ("fraction", "huge"),
    bool: ("flag",),
    str: ("text",),
    type(None): ("none",),
}


def call(owner: str, function: Callable[..., Any], arguments, **fit: tuple[str, ...]) -> Call:
    """A call whose arguments take what their annotations say, and what is said by hand."""
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kinds = get_args(parameter.annotation) or (parameter.annotation,)
        found[name] = tuple(value for kind in kinds for value in FITS.get(kind, ()))
    return Call(owner, function, arguments, {**found, **fit})


LEARNER_FITS: dict[str, dict[str, tuple[str, ...]]] = {
    "bmp": {"initial_bias": ("fraction", "huge", "negative")},
    "meta-ticket": {"skip": ("empty list",)},
    "multi-maml": {"inner_lr": ("fraction", "huge", "list")},
    "r2d2": {"scale": ("fraction", "huge", "negative")},
}


# A loss or a metric is called when there are outputs for it.
FUNCTIONS = ("none", "class", "function")
PARTS = {**dict.fromkeys(("model", "loss", "metric"), FUNCTIONS), "learner": ("none",)}


def learner_calls() -> Iterator[tuple[str, Call]]:
    for name, kind in LEARNERS.items():
        options = {"cavia": {"block": 1}, "meta-ticket": {"rounds": 1}}.get(name, {})
        loss = ("none",) if kind.own_loss else FUNCTIONS
        fit = {"loss": loss, "metric": FUNCTIONS, **LEARNER_FITS.get(name, {})}
        owner = kind.__name__
        yield name, call(owner, kind, lambda o=options: {"model": network(), **o}, **fit)
        learner = kind(network(), **options)
        yield f"{name}.adapt", call(owner, learner.adapt, lambda: {"support": batch().support})
        yield (
            f"{name}.meta_backward",
            call(owner, learner.meta_backward, lambda: {"batch": batch()}),
        )


def task_networks() -> dict[str, Any]:
    net = network()
    parameters = {name: p.detach().expand(3, *p.shape) for name, p in net.named_parameters()}
    return {"model": net, "parameters": parameters}


def adapted() -> AdaptedTasks:
    return AdaptedTasks(**task_networks())


EVALUATION = {
    **{"tasks": 2, "accuracy": 0.5, "interval": 0.1, "loss": 1.0, "transductive": True},
    **{"active": 1.0, "kernels": 4, "macs": 10.0, "dense_macs": 10, "distributions": {}},
    **{"accuracies": [0.4, 0.6], "episodes": "digest"},
}
RECORD = {"kind": "train", "iteration": 1, "accuracy": 0.5}
PRESET = {
    **{"learner": "maml", "data": "glyphs", "ways": 5, "shots": 1, "queries": 1, "tasks": 4},
    **{"iterations": 1, "meta_lr": 0.1, "image_size": 28},
}
MAPPINGS = ("mapping",)
EMPTY = ("text", "empty text")

CALLS: dict[str, Call] = {
    **dict(learner_calls()),
    "AdaptedTasks": call("AdaptedTasks", AdaptedTasks, task_networks),
    "AdaptedTasks()": call(
        "AdaptedTasks", adapted().__call__, lambda: {"images": batch().query.images}
    ),
    "task_call": call(
        "task_call",
        algorithms.task_call,
        lambda: {**task_networks(), "images": batch().query.images},
    ),
    "cross_entropy": call(
        "cross_entropy",
        lambda logits, labels: cross_entropy(logits, labels),
        lambda: {"logits": torch.zeros(3, 4, 5), "labels": torch.zeros(3, 4, dtype=torch.long)},
    ),
    "Source": call(
        "Source",
        algorithms.Source,
        lambda: {"paper": "a", "exact": "b"},
        **dict.fromkeys(("paper", "exact", "reconstructed"), EMPTY),
    ),
    "register": call("register", algorithms.register, lambda: {"name": "maml", "learner": MAML}),
    "find": call("find", algorithms.find, lambda: {"name": "maml"}, name=()),
    "Run": call("Run", Run, lambda: {"folder": "run"}),
    "RunConfig": call(
        "RunConfig",
        RunConfig,
        lambda: {"learner": "maml"},
        options=MAPPINGS,
        image_size=("none",),
        **dict.fromkeys(("optimizer", "schedule", "on_nonfinite"), ()),
        **dict.fromkeys(("model", "loss", "metric"), ("none",)),
        **dict.fromkeys(("preset",), ("none", *EMPTY)),
        validation_split=(),
        **dict.fromkeys(("meta_lr",), ("fraction",)),
        **dict.fromkeys(("mask_lr",), ("none", "fraction")),
    ),
    "Trainer": call(
        "Trainer",
        training.Trainer,
        lambda: {"config": RunConfig(learner="maml"), "run": Run("no-such-run")},
        reporter=("none", "empty list"),
        **PARTS,
        **dict.fromkeys(("data", "optimizer"), FUNCTIONS),
    ),
    "Checkpoint": call(
        "Checkpoint",
        training.Checkpoint,
        lambda: {
            **{"config": {}, "iteration": 1, "learner": {}, "optimizer": {}, "best": None},
            "random_state": torch.get_rng_state(),
        },
        **dict.fromkeys(("config", "learner", "optimizer", "skipped", "platform"), MAPPINGS),
        best=("none", "mapping"),
        random_state=DENSE,
    ),
    "Evaluation": call(
        "Evaluation",
        training.Evaluation,
        lambda: {**EVALUATION, "usage": {}},
        **dict.fromkeys(("distributions", "usage"), MAPPINGS),
        **dict.fromkeys(
            ("accuracy", "interval"), ("fraction", "huge", "negative", "nan", "infinity")
        ),
        **dict.fromkeys(("active", "macs"), ("fraction", "huge", "negative")),
        **dict.fromkeys(("tasks", "kernels", "dense_macs", "unscored"), ("huge",)),
        accuracies=("list", "empty list"),
        episodes=EMPTY,
        loss=("fraction", "huge", "negative", "nan", "infinity"),
    ),
    "RunEvaluation": call(
        "RunEvaluation",
        training.RunEvaluation,
        lambda: {
            **{"setting": "s", "adapt_steps": 1, "checkpoint": "best", "iteration": 1},
            **{"budget": None, "seconds": None, "numbers": EVALUATION},
        },
        **dict.fromkeys(("setting", "checkpoint", "name"), EMPTY),
        drawn=MAPPINGS,
        **dict.fromkeys(("budget", "seconds"), ("none", "fraction", "huge", "negative")),
    ),
    "evaluate": call(
        "evaluate",
        training.evaluate,
        lambda: {"learner": MAML(network()), "batches": [batch()], "tasks": 2},
        distributions=("empty list",),
    ),
    "predict": call(
        "predict",
        training.predict,
        lambda: {"adapted": adapted(), "support": batch().support, "images": batch().query.images},
    ),
    "evaluate_run": call(
        "evaluate_run",
        evaluation.evaluate_best,
        lambda: {"run": Run("no-such-run")},
        split=(),
        **{**PARTS, "data": (*FUNCTIONS, "text")},
    ),
    "compare": call("compare", training.compare, lambda: {"runs": [Run("no-such-run")]}, split=()),
    "export_masks": call(
        "export_masks",
        training.export_masks,
        lambda: {"run": Run("no-such-run"), "path": "masks.npz"},
        **{name: PARTS[name] for name in ("model", "learner")},
    ),
    "load": call("load", training.load, lambda: {"run": Run("no-such-run")}, **PARTS),
    "preset": call("preset", presets.preset, lambda: {"name": "maml"}, name=()),
    "Preset": call(
        "Preset",
        presets.Preset,
        lambda: PRESET,
        options=MAPPINGS,
        **dict.fromkeys(("learner", "data", "optimizer", "schedule", "note"), EMPTY),
        **dict.fromkeys(("meta_lr", "adam_eps"), ("fraction", "huge", "negative")),
        clip_value=("none", "fraction", "huge", "negative"),
    ),
    "Point": call(
        "Point",
        plots.Point,
        lambda: {"label": "a", "macs": 1.0, "accuracy": 0.5, "interval": 0.1},
        label=EMPTY,
        accuracy=("fraction", "huge", "negative"),
    ),
    "kernel_usage": call(
        "kernel_usage",
        plots.kernel_usage,
        lambda: {"usage": {"a": np.ones((2, 2))}, "path": "no-such-folder/a.png"},
        path=(),
        title=("none", *EMPTY),
    ),
    "accuracy_against_macs": call(
        "accuracy_against_macs",
        plots.accuracy_against_macs,
        lambda: {"points": [plots.Point("a", 1.0, 0.5, 0.1)], "path": "no-such-folder/a.png"},
        path=(),
        title=("none", *EMPTY),
    ),
    "learning_curves": call(
        "learning_curves",
        plots.learning_curves,
        lambda: {"runs": {"a": [RECORD]}, "path": "no-such-folder/a.png"},
        path=(),
        against=(),
        title=("none", *EMPTY),
    ),
}


def arguments() -> Iterator[tuple[str, str]]:
    for name, each in CALLS.items():
        for argument in inspect.signature(each.function).parameters:
            yield name, argument


@pytest.mark.parametrize(("name", "argument"), list(arguments()))
def test_a_wrong_argument_is_named(name, argument):
    each = CALLS[name]
    wrong = [value for value in VALUES if value not in each.fit.get(argument, ())]
    said = {value: complaint(each, argument, value) for value in wrong}
    assert wrong
    assert {value: found for value, found in said.items() if found is not None} == {}


@pytest.mark.parametrize("package", [algorithms, training, presets, plots])
def test_no_public_name_is_left_out(package):
    names = getattr(package, "__all__", None) or [
        name
        for name, value in vars(package).items()
        if getattr(value, "__module__", None) == package.__name__ and not name.startswith("_")
    ]
    classes = {learner.__name__ for learner in LEARNERS.values()}
    assert names
    assert set(names) <= set(CALLS) | classes | NOT_CALLED


def narrow(kind: str, dtype: torch.dtype) -> tuple[nn.Module, TaskBatch]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 3)) if kind == "plain" else network()
    tasks = TaskBatch(*(part._replace(images=part.images.to(dtype)) for part in batch()))
    return net.to(dtype), tasks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [IMAML, ConvexIMAML])
def test_learners_that_solve_refuse_narrow_parameters(kind, dtype):
    expected = f"{kind.__name__}: expected model to be of float32 or float64, got "
    with pytest.raises(TypeError, match=expected):
        kind(narrow("plain", dtype)[0])
    learner = kind(narrow("plain", torch.float32)[0]).to(dtype)
    with pytest.raises(TypeError, match=expected):
        learner.meta_backward(narrow("plain", dtype)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [MAML, ANIL, Reptile])
def test_narrow_parameters_of_plain_layers_train(kind, dtype):
    net, tasks = narrow("plain", dtype)
    assert kind(net).meta_backward(tasks).loss.isfinite().all()
    assert all(p.grad.dtype == dtype for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_parameters_of_masked_convolutions_train(dtype):
    net, tasks = narrow("conv4", dtype)
    assert MAML(net).meta_backward(tasks).loss.isfinite().all()
    assert all(p.grad.dtype == dtype for p in net.parameters())


def test_parameters_of_several_dtypes_are_refused():
    net = network()
    net.head.float()
    with pytest.raises(ValueError, match=r"MAML: expected model to be of one dtype, got .*float32"):
        MAML(net)


def test_parameters_without_shapes_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"got 1\.weight, 1\.bias without shapes; call the model"):
        MAML(net)


class Chosen(nn.Module):
    """A network whose one inner module is run by ``forward_of``."""

    def __init__(self, inner: nn.Module, forward_of: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.head, self.forward_of = inner, nn.Linear(8, 3), forward_of

    def forward(self, x):
        return self.head(self.forward_of(self.inner, x.flatten(1)))


SPECTRAL = nn.utils.parametrizations.spectral_norm


def test_a_module_that_updates_itself_is_named():
    """Its estimate is updated in place from the weight, which each task has its own of."""
    net = Chosen(SPECTRAL(nn.Linear(128, 8)), lambda inner, x: inner(x)).double()
    expected = r"^MAML: .* 'inner\.parametrizations\.weight\.0' \(_SpectralNorm\).*module\.eval\(\)"
    with pytest.raises(NotImplementedError, match=expected) as said:
        MAML(net).meta_backward(batch())
    assert "\n" not in str(said.value)


def test_spectral_norm_in_evaluation_mode_runs():
    net = Chosen(SPECTRAL(nn.Linear(128, 8)), lambda inner, x: inner(x)).double().eval()
    assert MAML(net).meta_backward(batch()).loss.isfinite().all()


@pytest.mark.parametrize(
    ("distribution", "names"),
    [(None, ["a"]), ([0, 1, 2], ["a", "b"]), ([0, -1, 0], ["a"])],
)
def test_distributions_are_those_of_the_tasks(distribution, names):
    query = batch().query
    if distribution is not None:
        query = query._replace(distribution=torch.tensor(distribution))
    tasks = batch()._replace(query=query)
    with pytest.raises(ValueError, match="evaluate: expected distributions to be the names"):
        training.evaluate(MAML(network()), [tasks], tasks=3, distributions=names)


def test_a_distribution_without_tasks_has_no_score():
    tasks = batch()
    tasks = tasks._replace(query=tasks.query._replace(distribution=torch.tensor([0, 2, 2])))
    found = training.evaluate(MAML(network()), [tasks], tasks=3, distributions=["a", "b", "c"])
    assert {name: score["tasks"] for name, score in found.distributions.items()} == {"a": 1, "c": 2}
