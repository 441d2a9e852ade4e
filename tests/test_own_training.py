"""Training with parts of one's own that few others are like."""

import dataclasses

import pytest
import torch
from support import own_parts
from support.training_helpers import StopAfter, assert_same_state, timeless
from test_own_parts import config, state

from metasparse_ext.algorithms import MAML
from metasparse_ext.cli.display import draw_figures, table
from metasparse_ext.training import Run, Trainer, checkpoint, compare, evaluate_run, metrics
from metasparse_ext.training.kept import kept
from metasparse_ext.training.measure import TAKEN, measure_of
from metasparse_ext.training.progress import validation_text
from metasparse_ext.training.scores import Evaluation

pytestmark = pytest.mark.usefixtures("one_thread")


def resumed_exactly(folder, asked, parts=dict):
    """Trains twice, once with a stop between; returns the records, which are the same."""
    whole, stopped = Run(folder / "whole"), Run(folder / "stopped")
    Trainer(asked, whole, **parts()).fit()
    assert Trainer(asked, stopped, reporter=StopAfter(4), **parts()).fit().interrupted
    Trainer(asked, stopped, **parts()).fit()
    assert timeless(stopped) == timeless(whole)
    assert_same_state(state(stopped), state(whole))
    return timeless(whole)


CONV = {"model": "conv4", "width": 2, "iterations": 2}

# Optimizers.


def head_alone(learner, lr):
    return torch.optim.Adam(list(learner.parameters())[-2:], lr=lr)


def test_the_meta_gradient_is_that_of_what_is_stepped(tmp_path):
    asked = config(clip_norm=0.01, meta_lr=1e-6, iterations=20, validate_every=20)
    records = resumed_exactly(tmp_path, asked, lambda: {"optimizer": head_alone})
    norms = [record["gradient_norm"] for record in records if record["kind"] == "train"]
    # Of weights that hardly change: what is not stepped does not pile up.
    assert max(norms[10:]) < 2 * max(norms[:10])
    trainer = Trainer(asked, Run(tmp_path / "one"), optimizer=head_alone)
    trainer._step()
    *_, weight, bias = trainer.learner.parameters()
    norm = torch.stack([weight.grad.norm(), bias.grad.norm()]).norm()
    torch.testing.assert_close(float(norm), 0.01, rtol=1e-3, atol=0)


class Counting(torch.optim.SGD):
    """Keeps a count of its own beside what it has of each parameter."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr, momentum=0.9)
        self.state["count"] = 0

    def step(self, closure=None):
        self.state["count"] += 1
        return super().step(closure)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_an_optimizer_may_keep_what_it_likes(tmp_path, on_nonfinite):
    asked = config(on_nonfinite=on_nonfinite)
    resumed_exactly(tmp_path, asked, lambda: {"optimizer": Counting})


class Rateless(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})


def lbfgs(parameters, lr):
    return torch.optim.LBFGS(parameters, lr=lr)


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (Rateless, "optimizer to be one with a rate lr in each of its groups, .* Rateless without"),
        (lbfgs, r"optimizer to be one that steps by the gradients .* LBFGS, whose step\(closure\)"),
    ],
)
def test_optimizers_that_the_loop_cannot_step_are_refused(tmp_path, optimizer, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(config(), Run(tmp_path), optimizer=optimizer)
    assert not Run(tmp_path).started


# Metrics and losses of any name and value.


def hundredfold(outputs, targets):
    return 100 * own_parts.top2(outputs, targets)


def trained(folder, **parts):
    run = Run(folder)
    Trainer(config(**parts.pop("changes", {})), run, **parts).fit()
    return run


def named(name, function):
    """A function whose definition has this name."""

    def other(outputs, targets):
        return function(outputs, targets)

    other.__qualname__ = name
    return other


@pytest.mark.parametrize("kind", ["loss", "metric"])
def test_no_name_is_in_the_way(kind):
    wanted = {name: f"own_{name}" for name in TAKEN}
    wanted |= {"<lambda>": "own_loss" if kind == "loss" else "metric", "mine": "mine"}
    for name, said in wanted.items():
        learner = MAML(own_parts.Net(), **{kind: named(name, own_parts.soft)})
        assert measure_of(learner).name == said


def test_names_that_records_have_are_taken(tmp_path):
    run = trained(tmp_path, changes={"learner": "meta-ticket", "options": {"rounds": 1}, **CONV})
    names = {name for record in metrics.read(run.metrics_path) for name in record}
    names |= {entry.name for entry in dataclasses.fields(Evaluation)}
    assert names <= TAKEN


@pytest.mark.parametrize(
    ("kind", "name"), [("loss", "loss"), ("metric", "accuracy"), ("metric", "episodes")]
)
def test_a_part_of_a_name_that_is_taken(tmp_path, kind, name):
    functions = {"loss": own_parts.soft, "metric": hundredfold}
    given = {kind: named(name, functions[kind])}
    found = evaluate_run(trained(tmp_path, **given), **given)
    assert found.measure == f"own_{name}"
    assert kept(Run(tmp_path)).score == found.score


def precision(outputs, targets):
    """Of the second class; where none is said to be of it, not a number."""
    said = outputs.argmax(-1) == 1
    return (said & (targets == 1)).sum() / said.sum()


def never(outputs, targets):
    return outputs.sum() * torch.nan


def test_a_metric_without_a_value_on_some_tasks(tmp_path, caplog):
    small = {"evaluation_tasks": 40, "validation_tasks": 40, "meta_lr": 1e-5}
    run = trained(tmp_path, changes=small, metric=precision)
    record = metrics.read(run.metrics_path)[-1]
    assert 0 < record["unscored"] < 40
    assert 0 <= record["precision"] <= 1
    assert f"precision has no finite value on {record['unscored']} of 40 tasks" in caplog.text
    found = evaluate_run(run, metric=precision)
    values = [value for value in found.numbers["accuracies"] if value is not None]
    assert len(values) == 40 - found.numbers["unscored"]
    assert found.score == pytest.approx(sum(values) / len(values))
    assert kept(run).numbers == found.numbers
    other = trained(tmp_path / "b", changes={**small, "learner": "fomaml"}, metric=precision)
    second = evaluate_run(other, metric=precision).numbers["accuracies"]
    pairs = zip(found.numbers["accuracies"], second, strict=True)
    compared = compare([run, other]).contenders[1].difference.count
    assert compared == sum(None not in pair for pair in pairs)
    assert draw_figures({"a": run}, tmp_path)


def test_a_metric_without_any_value_ends_no_run(tmp_path):
    run = trained(tmp_path, metric=never)
    records = metrics.read(run.metrics_path)
    assert [r["eligible"] for r in records if r["kind"] == "validation"] == [False, False]
    assert records[-1]["never"] is None
    found = evaluate_run(run, metric=never)
    assert found.numbers["never"] is None
    assert "never nan" in validation_text(records[-1], best=False)
    assert "nan" in str(table({"a": found}).columns[1]._cells)
    assert draw_figures({"a": run}, tmp_path)


# Validation tasks.


def test_validation_tasks_may_be_fewer_when_a_run_goes_on(tmp_path, caplog):
    data = {"train": own_parts.Sampler(), "val": [own_parts.batch(0), own_parts.batch(1, 1)]}
    asked = config(data="own", validation_tasks=3)
    with pytest.raises(ValueError, match=r"validation_tasks to be at most 3, the tasks of .*, got"):
        Trainer(asked.replace(validation_tasks=4), Run(tmp_path), data=data)
    Trainer(asked.replace(iterations=3), Run(tmp_path), data=data).fit()
    Trainer(asked.replace(validation_tasks=2), Run(tmp_path), data=data).fit()
    assert "goes on with validation_tasks = 2, it was 3" in caplog.text
    assert metrics.read(Run(tmp_path).metrics_path)[-1]["tasks"] == 2


# Random numbers of data and of networks.


class Forgetful(own_parts.Net):
    def __init__(self):
        super().__init__()
        self.layers.insert(3, torch.nn.Dropout())


class Noisy(own_parts.Sampler):
    """Six batches; draws from torch's own random state."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        batch = own_parts.batch(self.first + index)
        batch.support.images.add_(torch.rand(()))
        return batch


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_and_dropout_do_not_meet(tmp_path, shuffle):
    def parts():
        loader = torch.utils.data.DataLoader
        data = {
            "train": loader(Noisy(), None, shuffle=shuffle),
            "val": loader(Noisy(100), None),
        }
        return {"data": data, "model": Forgetful}

    asked = config(data="own", model=None, iterations=15, save_every=1)
    records = resumed_exactly(tmp_path, asked, parts)
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(set(losses)) == len(losses)


# Errors of code of one's own.


class Counted:
    """A function that raises when it is called for the n-th time."""

    def __init__(self, function, fails):
        self.function, self.calls, self.fails = function, 0, fails

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.fails:
            raise ZeroDivisionError("mine")
        return self.function(*arguments)


# The ninth call of the metric is that of the last validation.
@pytest.mark.parametrize(
    ("part", "function", "fails"), [("loss", own_parts.soft, 14), ("metric", own_parts.top2, 9)]
)
@pytest.mark.parametrize("log_every", [1, 100])
def test_what_ones_own_code_raises_costs_nothing(
    tmp_path, caplog, part, function, fails, log_every
):
    asked = config(save_every=100, model=f"{__name__}:Forgetful", log_every=log_every)
    whole, failed = Run(tmp_path / "whole"), Run(tmp_path / "failed")
    Trainer(asked, whole, **{part: Counted(function, None)}).fit()
    with pytest.raises(ZeroDivisionError, match="mine"):
        Trainer(asked, failed, **{part: Counted(function, fails)}).fit()
    saved = checkpoint.load(failed.last_path).iteration
    assert saved > 0
    assert f"is saved at iteration {saved}, before ZeroDivisionError" in caplog.text
    Trainer(asked, failed, **{part: Counted(function, None)}).fit()
    assert timeless(failed) == timeless(whole)
    assert_same_state(state(failed), state(whole))


@pytest.mark.parametrize("fails", range(1, 9))
def test_a_metric_that_raises_anywhere(tmp_path, fails):
    asked = config(save_every=100)
    run = Run(tmp_path)
    with pytest.raises(ZeroDivisionError, match="mine"):
        Trainer(asked, run, metric=Counted(own_parts.top2, fails)).fit()
    assert Trainer(asked, run, metric=Counted(own_parts.top2, None)).fit().iteration == 6
    kinds = [record["kind"] for record in metrics.read(run.metrics_path)]
    assert kinds == ["train"] * 3 + ["validation"] + ["train"] * 3 + ["validation"]
    assert int(state(run)["iteration"]) == 6


class Breaking(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        raise ZeroDivisionError("mine")


def test_half_a_step_is_not_saved(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ZeroDivisionError, match="mine"):
        Trainer(config(), run, optimizer=Breaking).fit()
    torch.manual_seed(0)
    assert_same_state(state(run)["model.layers.1.bias"], own_parts.Net().layers[1].bias.data)
