"""Regression: the sinusoids of MAML's paper, and what is reported where there is no accuracy."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from support.training_helpers import one_line, tiny_config

from metasparse_ext import cli
from metasparse_ext.algorithms import LEARNERS
from metasparse_ext.data import Sinusoids
from metasparse_ext.nn import MLP
from metasparse_ext.plots import Point, accuracy_against_macs, learning_curves
from metasparse_ext.training import Run, RunConfig, Trainer, evaluate_run, load, metrics
from metasparse_ext.training.measure import measure_of

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"shots": 5, "queries": 5, "tasks": 4, "validation_tasks": 8, "evaluation_tasks": 8}


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def flags(**fields):
    return [part for n, v in fields.items() for part in (f"--{n}".replace("_", "-"), v)]


def test_the_tasks_are_those_of_the_paper():
    sinusoids = Sinusoids(shots=10, queries=90, tasks=200)
    batch = sinusoids[0]
    x = torch.cat([part.images for part in batch], 1).double()
    y = torch.cat([part.labels for part in batch], 1).double()
    assert x.shape == y.shape == (200, 100, 1)
    assert x.min() >= -5
    assert x.max() <= 5
    assert x.std() == pytest.approx(10 / math.sqrt(12), rel=0.05)
    # y = a sin(x - b) = a cos(b) sin(x) - a sin(b) cos(x): exactly two numbers a task.
    waves = torch.cat([x.sin(), x.cos()], -1)
    found = torch.linalg.lstsq(waves, y).solution
    torch.testing.assert_close(waves @ found, y, atol=1e-5, rtol=0)
    amplitude, phase = found.norm(dim=1), torch.atan2(-found[:, 1], found[:, 0])
    for values, low, high in ((amplitude, 0.1, 5), (phase, 0, math.pi)):
        assert values.min() >= low - 1e-4
        assert values.max() <= high + 1e-4
        assert values.mean() == pytest.approx((low + high) / 2, rel=0.1)


def test_a_task_depends_on_seed_split_and_number_alone():
    two, three = (Sinusoids(shots=2, queries=3, tasks=tasks, seed=1) for tasks in (2, 3))
    assert torch.equal(two[2].query.labels[1], three[1].query.labels[2])
    for other in ({"seed": 2}, {"seed": 1, "split": "val"}):
        drawn = Sinusoids(shots=2, queries=3, tasks=2, **other)[2]
        assert not torch.equal(two[2].query.labels, drawn.query.labels)


def test_a_short_training_halves_the_error_after_adaptation(tmp_path):
    fields = {"shots": 10, "queries": 10, "tasks": 25, "iterations": 400, "meta_lr": 0.005}
    fields |= {"inner_lr": 0.02, "inner_steps": 1, "validate_every": 100}
    fields |= {"validation_tasks": 100, "evaluation_tasks": 100, "log_every": 100}
    trained = invoke("train", "maml", "--data", "sinusoid", *flags(**fields), "--out", tmp_path)
    assert trained.exit_code == 0, trained.output
    assert "validation mse " in trained.stdout
    config = Run(tmp_path).config()
    assert (config.model, config.loss) == ("mlp", "mse")
    learner = Trainer(config, Run(tmp_path)).learner
    assert [m.out_features for m in learner.modules() if hasattr(m, "out_features")] == [40, 40, 1]
    evaluated = invoke("evaluate", tmp_path)
    assert "regression 10-shot, sinusoid test tasks" in " ".join(evaluated.stdout.split())
    # The mean of a^2 / 2 is what an answer of zero would get.
    untrained = (5**3 - 0.1**3) / (3 * 4.9) / 2
    found = json.loads(Run(tmp_path).evaluation_path("test").read_text())["numbers"]
    assert found["measure"] == "mse"
    assert found["mse"] == found["loss"] < untrained / 2
    validations = [
        r["mse"] for r in metrics.read(Run(tmp_path).metrics_path) if r["kind"] != "train"
    ]
    assert validations[-1] < validations[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread):
    run = Run(tmp_path_factory.mktemp("regression") / "run")
    config = RunConfig(learner="maml", data="sinusoid", iterations=4, validate_every=2, **SHORT)
    Trainer(config, run).fit()
    evaluate_run(run)
    return run


def test_the_error_stands_in_place_of_accuracy(run):
    for record in metrics.read(run.metrics_path):
        assert record["measure"] == "mse"
        assert record["mse"] == record["loss"]
        assert "accuracy" not in record
    found = evaluate_run(run)
    assert (found.measure, found.score) == ("mse", found.numbers["loss"])
    table = " ".join(invoke("evaluate", run).stdout.split())
    assert "mse active kernels" in table
    assert "mse with its 95 % interval" in table
    assert "accuracy" not in table
    assert invoke("plot", run).exit_code == 0


def test_the_lowest_error_is_the_best(run):
    validations = [r for r in metrics.read(run.metrics_path) if r["kind"] == "validation"]
    best = min(validations, key=lambda record: (record["mse"], -record["iteration"]))
    assert evaluate_run(run).iteration == best["iteration"]


def test_not_transductive_is_the_same_without_batch_statistics(run):
    together, alone = (evaluate_run(run, transductive=kind).score for kind in (True, False))
    assert together == pytest.approx(alone, rel=1e-5)


def test_another_metric_is_reported_beside_the_loss(tmp_path):
    config = RunConfig(
        learner="maml", data="sinusoid", metric="mae", iterations=2, validate_every=2, **SHORT
    )
    outcome = Trainer(config, Run(tmp_path)).fit()
    assert outcome.best["measure"] == "mae"
    assert outcome.best["mae"] != outcome.best["loss"]


@pytest.mark.parametrize(
    ("options", "less"),
    [
        ({}, False),
        ({"loss": F.mse_loss}, True),
        ({"loss": F.mse_loss, "metric": F.l1_loss}, True),
        ({"loss": F.mse_loss, "metric": lambda outputs, targets: outputs.mean()}, False),
    ],
)
def test_which_of_two_checkpoints_is_better(options, less):
    measure = measure_of(LEARNERS["maml"](MLP(1, 1), **options))
    little, much = {measure.name: 1.0}, {measure.name: 2.0}
    assert measure.better(little, much) is less
    assert measure.better(much, little) is not less
    assert measure.better(much, much)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_regresses_or_says_why_not(tmp_path, name):
    short = flags(iterations=1, validate_every=1, **SHORT)
    more = ["--set", "distributions=2"] if name == "multi-maml" else []
    result = invoke("train", name, "--data", "sinusoid", *short, *more, "--out", tmp_path)
    if name in ("maml", "fomaml", "imaml", "reptile", "bmp"):
        assert result.exit_code == 0, result.output
    else:
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == 1
    if name in ("anil", "convex-maml", "convex-imaml"):
        assert (
            "expected loss to be None: the inner problem is a softmax regression" in result.stderr
        )


def test_images_of_classes_are_not_predicted_by_a_regressor(run):
    with pytest.raises(
        ValueError, match="load: expected run to be one that tells classes of images"
    ):
        load(run)


def test_targets_need_a_loss(tmp_path):
    data = {
        split: Sinusoids(shots=1, queries=1, tasks=4, split=split) for split in ("train", "val")
    }
    config = RunConfig(learner="maml", data="own", model="mlp")
    with pytest.raises(
        ValueError, match=r"expected loss to be a function for the targets of .*float32"
    ):
        Trainer(config, Run(tmp_path), data=data)
    Trainer(config.replace(loss="mse"), Run(tmp_path), data=data)


def test_figures_of_one_measure(tmp_path):
    points = [Point("a", 1.0, 0.5, 0.1), Point("b", 1.0, 7.5, 0.1, "mse")]
    accuracy_against_macs(points[1:], tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"points to be judged by one measure, got \['accuracy', 'mse'"
    ):
        accuracy_against_macs(points, tmp_path / "b.png")
    record = {"kind": "train", "iteration": 1}
    runs = {"a": [{**record, "accuracy": 0.5}], "b": [{**record, "measure": "mse", "mse": 7.0}]}
    learning_curves({"b": runs["b"]}, tmp_path / "c.png")
    with pytest.raises(
        ValueError, match="learning_curves: expected runs to be judged by one measure"
    ):
        learning_curves(runs, tmp_path / "d.png")


def test_runs_that_are_judged_differently_are_not_in_one_figure(tmp_path, tiny_root, run):
    Trainer(tiny_config(tiny_root, iterations=1), Run(tmp_path)).fit()
    shown = one_line(invoke("plot", run, tmp_path, "--out", tmp_path))
    assert "expected runs to be judged by one measure, got ['accuracy', 'mse']" in shown


def test_a_perceptron_is_the_model_where_inputs_are_no_images(tmp_path):
    data = {
        split: Sinusoids(shots=1, queries=1, tasks=4, split=split) for split in ("train", "val")
    }
    config = RunConfig(learner="maml", data="own", loss="mse")
    assert Trainer(config, Run(tmp_path), data=data).config.model == "mlp"


def test_a_perceptron_of_tasks_equals_a_loop():
    net, x = MLP((2, 3), 4, (5, 6)), torch.randn(3, 7, 2, 3)
    own = {name: torch.randn(3, *p.shape) for name, p in net.named_parameters()}
    together = torch.func.functional_call(net, own, (x,))
    for task in range(3):
        alone = torch.func.functional_call(net, {n: p[task] for n, p in own.items()}, (x[task],))
        torch.testing.assert_close(together[task], alone)
    hidden = x[0].flatten(1)
    for layer in (net.layers[0], net.layers[2]):
        hidden = F.relu(F.linear(hidden, layer.weight, layer.bias))
    torch.testing.assert_close(net(x[0]), F.linear(hidden, net.head.weight, net.head.bias))
