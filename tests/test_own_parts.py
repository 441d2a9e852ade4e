"""Data, models, learners, losses and optimizers of one's own in runs: by name, and as objects."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from support import own_parts
from support.training_helpers import StopAfter, assert_same_state, one_line, package_path, timeless
from torch import nn

import metasparse_ext as ms
from metasparse_ext import cli, load
from metasparse_ext.algorithms import MAML
from metasparse_ext.training import (
    CheckpointError,
    Run,
    RunConfig,
    Trainer,
    checkpoint,
    evaluate_run,
    export_masks,
    metrics,
)
from metasparse_ext.training.parts import Parts

pytestmark = pytest.mark.usefixtures("one_thread")

MINE = "support.own_parts"
INNER = {"inner_lr": 0.1, "inner_steps": 2}
SMALL = {
    **{"ways": 3, "queries": 2, "tasks": 2, "iterations": 6, "validate_every": 3},
    **{"validation_tasks": 4, "evaluation_tasks": 4, "save_every": 2},
}
NAMED = {"data": f"{MINE}:classes", "model": f"{MINE}:net"}


def config(**changes):
    return RunConfig(**{"learner": "maml", "options": INNER, **SMALL, **NAMED, **changes})


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def small_flags(**changes):
    flags = {**SMALL, **INNER, **NAMED, **changes}
    return [p for n, v in flags.items() for p in (f"--{n}".replace("_", "-"), v) if v is not None]


def state(run):
    return checkpoint.load(run.last_path).learner


# By name.


def test_accuracy_beside_a_loss_of_ones_own(tmp_path):
    """It is the measure that a run with the usual loss has: the two can be compared."""
    for name, parts in (("a", {}), ("b", {"loss": f"{MINE}:soft", "metric": "accuracy"})):
        trained = invoke("train", "maml", *small_flags(**parts), "--out", tmp_path / name)
        assert trained.exit_code == 0, trained.output
        assert "accuracy" in metrics.read(Run(tmp_path / name).metrics_path)[-1]
        assert invoke("evaluate", tmp_path / name).exit_code == 0
    compared = invoke("compare", tmp_path / "a", tmp_path / "b")
    assert compared.exit_code == 0, compared.output


def test_options_without_a_default_are_required():
    shown = invoke("learners", f"{MINE}:Required")
    assert shown.exit_code == 0, shown.output
    assert "inner_lr (required)" in " ".join(shown.stdout.split())


def test_a_run_of_parts_of_ones_own_by_name(tmp_path):
    parts = {"loss": f"{MINE}:soft", "metric": f"{MINE}:top2", "optimizer": f"{MINE}:descent"}
    trained = invoke("train", f"{MINE}:Mine", *small_flags(**parts), "--out", tmp_path)
    assert trained.exit_code == 0, trained.output
    assert "validation top2 0." in trained.stdout
    begun = Run(tmp_path).config()
    assert {name: getattr(begun, name) for name in (*parts, *NAMED)} == {**parts, **NAMED}
    record = metrics.read(Run(tmp_path).metrics_path)[-1]
    assert record["measure"] == "top2"
    assert "accuracy" not in record
    assert 0 <= record["top2"] <= 1
    optimizer = checkpoint.load(Run(tmp_path).last_path).optimizer
    assert optimizer["param_groups"][0]["momentum"] == 0.9
    evaluated = invoke("evaluate", tmp_path)
    assert evaluated.exit_code == 0, evaluated.output
    words = " ".join(evaluated.stdout.split())
    assert "top2 active kernels" in words
    assert f"{MINE}:classes test classes" in words
    assert json.loads(Run(tmp_path).evaluation_path("test").read_text())["numbers"]["top2"] <= 1
    assert invoke("train", "--resume", "--out", tmp_path, "--iterations", 8).exit_code == 0
    assert invoke("plot", tmp_path).exit_code == 0


def test_the_metric_takes_the_place_of_accuracy(tmp_path):
    def accuracy(outputs, targets):
        return (outputs.argmax(-1) == targets).double().mean()

    ours, own = Run(tmp_path / "ours"), Run(tmp_path / "own")
    Trainer(config(), ours).fit()
    Trainer(config(), own, metric=accuracy).fit()
    for one, other in zip(timeless(ours), timeless(own), strict=True):
        assert one.pop("accuracy") == pytest.approx(other.pop("own_accuracy"))
        assert other.pop("measure") == "own_accuracy"
        interval = other.pop("interval", None)
        assert one.pop("interval", None) == (interval and pytest.approx(interval))
        assert one == other


@pytest.mark.parametrize("data", ["classes", "arrays", "sampler", "stream", "stream_from"])
def test_every_kind_of_data_resumes_exactly(tmp_path, data):
    asked = config(data=f"{MINE}:{data}")
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    Trainer(asked, whole).fit()
    assert Trainer(asked, parts, reporter=StopAfter(3)).fit().interrupted
    Trainer(asked, parts).fit()
    assert timeless(parts) == timeless(whole)
    assert_same_state(state(parts), state(whole))
    assert evaluate_run(parts).numbers == evaluate_run(whole).numbers


def test_inputs_may_be_numbers_of_words(tmp_path):
    asked = config(data=f"{MINE}:sentences", model=f"{MINE}:Words")
    outcome = Trainer(asked, Run(tmp_path)).fit()
    assert outcome.best["dense_macs"] == 4 * 3
    assert 0 <= evaluate_run(Run(tmp_path), transductive=False).score <= 1


def test_threads_draw_a_sampler_ahead(tmp_path):
    runs = [Run(tmp_path / str(workers)) for workers in (0, 2)]
    for workers, run in zip((0, 2), runs, strict=True):
        Trainer(config(data=f"{MINE}:sampler", workers=workers), run).fit()
    assert timeless(runs[0]) == timeless(runs[1])


def test_a_sampler_goes_on_without_what_was_drawn(tmp_path):
    drawn = []

    class Noted(own_parts.Sampler):
        def __getitem__(self, index):
            drawn.append(index)
            return super().__getitem__(index)

    data = {"train": Noted(), "val": own_parts.Sampler(100)}
    Trainer(config(data="own", iterations=4), Run(tmp_path), data=data).fit()
    drawn.clear()
    Trainer(config(data="own"), Run(tmp_path), data=data).fit()
    assert drawn == [0, 4, 5]  # the first to see what they are like


def test_modules_are_imported_from_the_present_folder(tmp_path):
    text = Path(own_parts.__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    flags = small_flags(data="mine:arrays", model="mine:net", iterations=1)
    # As the console script does, which has its own folder in the place of the present one.
    start = (
        "import sys; sys.path[0] = sys.prefix; from metasparse_ext.cli import program; program()"
    )
    command = [sys.executable, "-c", start, "train", "mine:Mine", *map(str, flags), "--out", "run"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=package_path(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert Run(tmp_path / "run").config().learner == "mine:Mine"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"data": f"{MINE}:failing"}, "RuntimeError: no train today (own_parts.py, line"),
        ({"loss": f"{MINE}:odd_loss"}, "ValueError: too odd (own_parts.py, line"),
        ({"metric": f"{MINE}:untyped_loss"}, "TypeError: unsupported operand type(s) for +"),
        ({"data": f"{MINE}:needy"}, "its parameters of support.own_parts:needy"),
        ({"data": f"{MINE}:nothing"}, "has no attribute 'nothing'"),
        ({"data": "nowhere.at_all:nothing"}, "got 'nowhere.at_all:nothing': No module named"),
        ({"model": f"{MINE}:broken"}, "RuntimeError: "),
        ({"model": f"{MINE}:NUMBER"}, "something to call, got int 3"),
        ({"model": f"{MINE}:top2"}, "its parameters of support.own_parts:top2"),
        ({"model": "transformer"}, "one of conv4, resnet12, mlp or package.module:attribute"),
        ({"loss": "hinge"}, "expected loss to be one of mse, mae or package.module:attribute"),
        ({"optimizer": "adamw"}, "one of adam, sgd or package.module:attribute, got 'adamw'"),
        ({"data": f"{MINE}:sampler", "tasks": 2, "ways": 2}, "labels to be classes from 0 to 1"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, flags, sentence):
    result = invoke("train", "maml", *small_flags(**flags), "--out", tmp_path)
    assert sentence.replace("its parameters", "expected the parameters") in one_line(result)


# As objects.


def objects():
    """A learner, its model, and an optimizer of its parameters."""
    torch.manual_seed(1)
    model = own_parts.Net()
    learner = own_parts.Mine(model, inner_lr=0.1, inner_steps=2, loss=own_parts.soft)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.01)
    splits = {"train": 0, "val": 500, "test": 900}
    data = {split: own_parts.Sampler(first) for split, first in splits.items()}
    return {"learner": learner, "optimizer": optimizer, "data": data}


def test_objects_train_resume_and_evaluate_as_names_do(tmp_path):
    asked = config(data="own", model=None, learner="own", options={})
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    Trainer(asked, whole, **objects()).fit()
    assert Trainer(asked, parts, reporter=StopAfter(3), **objects()).fit().interrupted
    Trainer(asked, parts, **objects()).fit()
    assert timeless(parts) == timeless(whole)
    assert_same_state(state(parts), state(whole))
    begun = whole.config()
    assert begun.learner == "<support.own_parts.Mine>"
    assert begun.optimizer == "<torch.optim.adamw.AdamW>"
    assert begun.loss == f"{MINE}:soft"
    given = {name: objects()[name] for name in ("learner", "data")}
    before = {name: value.clone() for name, value in given["learner"].state_dict().items()}
    found = evaluate_run(whole, **given)
    assert found.numbers == evaluate_run(parts, **given).numbers
    assert found.setting == "3-way 1-shot, <support.own_parts.Sampler> test tasks"
    assert_same_state(dict(given["learner"].state_dict()), before)
    assert load(whole, learner=given["learner"]).reader.shape == (1, 8, 8)


def test_a_model_that_is_given_is_the_one_that_is_named(tmp_path):
    named, given = Run(tmp_path / "named"), Run(tmp_path / "given")
    Trainer(config(), named).fit()
    torch.manual_seed(0)
    model = own_parts.Net()
    Trainer(config(model=None), given, model=model).fit()
    assert_same_state(state(named), state(given))
    assert_same_state(
        dict(model.state_dict()),
        {n.removeprefix("model."): v for n, v in state(given).items() if n != "iteration"},
    )


def test_functions_and_classes_that_are_given_are_known_by_name(tmp_path):
    asked = config(data="own", model=None)
    given = {"data": own_parts.classes, "model": own_parts.net, "learner": own_parts.Mine}
    Trainer(asked, Run(tmp_path), optimizer=own_parts.descent, metric=own_parts.top2, **given).fit()
    begun = Run(tmp_path).config()
    assert (begun.data, begun.model, begun.learner) == (*NAMED.values(), f"{MINE}:Mine")
    assert (begun.optimizer, begun.metric) == (f"{MINE}:descent", f"{MINE}:top2")
    assert invoke("evaluate", tmp_path).exit_code == 0  # in another process, too


def test_a_resume_with_other_objects_is_refused(tmp_path):
    run, asked = Run(tmp_path), config(model=None)
    Trainer(asked, run, model=own_parts.Net()).fit()
    with pytest.raises(
        ValueError, match=r"begun with model = '<support.own_parts.Net>', got '<torch"
    ):
        Trainer(asked, run, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(CheckpointError, match=r"not the state of this learner: .* size mismatch"):
        Trainer(asked, run, model=own_parts.Net(4))
    with pytest.raises(
        ValueError, match=r"begun with model = '<support.own_parts.Net>', got 'conv4'"
    ):
        Trainer(asked, run)
    with pytest.raises(ValueError, match=r"begun with loss = None, got '<.*lambda>>'"):
        Trainer(asked, run, model=own_parts.Net(), loss=lambda o, t: own_parts.soft(o, t))
    shown = one_line(invoke("train", "--resume", "--out", tmp_path))
    assert "was begun from Python with model <support.own_parts.Net>" in shown


def test_a_learner_of_other_options_is_another(tmp_path):
    def learner(**options):
        return MAML(own_parts.Net(), **{**INNER, **options})

    asked, run = RunConfig(learner="own", **SMALL, data=NAMED["data"]), Run(tmp_path)
    Trainer(asked.replace(iterations=3), run, learner=learner(task_chunk=1)).fit()
    assert run.config().options == {**MAML(own_parts.Net(), **INNER).made_with}
    Trainer(asked, run, learner=learner()).fit()
    assert evaluate_run(run, learner=learner(first_order=False)).name == "test"
    kept = run.evaluation_path("test").read_bytes()
    said = "learner to be one of inner_lr=0.1, as the run was trained with, got inner_lr=0.2"
    for use in (evaluate_run, load, lambda run, learner: Trainer(asked, run, learner=learner)):
        with pytest.raises(ValueError, match=said if use in (evaluate_run, load) else "options"):
            use(run, learner=learner(inner_lr=0.2))
    assert run.evaluation_path("test").read_bytes() == kept
    assert evaluate_run(run, learner=learner(), adapt_steps=3).name == "test-3steps"


def test_a_run_of_an_earlier_version_does_not_say_options(tmp_path, monkeypatch):
    asked, run = RunConfig(learner="own", **SMALL, data=NAMED["data"]), Run(tmp_path)
    parts = {"learner": MAML(own_parts.Net(), **INNER)}
    with monkeypatch.context() as earlier:
        earlier.setattr(Parts, "options", lambda self: {})
        Trainer(asked.replace(iterations=3), run, **parts).fit()
    assert evaluate_run(run, **parts).name == "test"
    assert Trainer(asked, run, **parts).fit().iteration == 6


def test_a_run_of_objects_without_a_name_says_what_to_pass(tmp_path):
    run = Run(tmp_path)
    Trainer(config(model=None), run, model=own_parts.Net()).fit()
    pattern = "expected model to be given, because the run was trained with an object, <support"
    for ask in (evaluate_run, load, lambda run: export_masks(run, tmp_path / "masks.npz")):
        with pytest.raises(ValueError, match=pattern):
            ask(run)
    assert "expected model to be given" in one_line(invoke("evaluate", tmp_path))
    with pytest.raises(ValueError, match="as the run was trained with, got <torch"):
        evaluate_run(run, model=nn.Linear(1, 1))
    assert evaluate_run(run, model=own_parts.Net()).numbers["tasks"] == 4
    assert export_masks(run, tmp_path / "masks.npz", model=own_parts.Net()) == {}


def test_evaluation_on_other_data(tmp_path):
    Trainer(config(), Run(tmp_path)).fit()
    own = evaluate_run(Run(tmp_path), data={"test": own_parts.arrays("val")})
    assert own.setting == "3-way 1-shot, <arrays> test classes"


@pytest.mark.parametrize(
    ("train", "last"),
    [
        (lambda: [own_parts.batch(number) for number in range(4)], 1),
        (lambda: iter([own_parts.batch(number) for number in range(6)]), 5),
        (lambda: map(own_parts.batch, itertools.count()), 5),
        (lambda: own_parts.stream(0, 2), 5),
        (lambda: torch.utils.data.DataLoader(own_parts.Sampler(), None, sampler=range(6)), 5),
        (own_parts.Stream, 5),
    ],
    ids=["list", "iterator", "map", "generator", "loader", "iterable"],
)
def test_kinds_of_objects(tmp_path, train, last):
    def data():
        return {"train": train(), "val": [own_parts.batch(100), own_parts.batch(101)]}

    asked = config(data="own")
    seen, trainer = [], Trainer(asked, Run(tmp_path / "whole"), data=data())
    batches = trainer.batches
    trainer.batches = (seen.append(batch) or batch for batch in batches)
    trainer.fit()
    torch.testing.assert_close(seen[-1].support.images, own_parts.batch(last).support.images)
    Trainer(asked, Run(tmp_path / "parts"), data=data(), reporter=StopAfter(4)).fit()
    Trainer(asked, Run(tmp_path / "parts"), data=data()).fit()
    assert_same_state(state(Run(tmp_path / "parts")), state(Run(tmp_path / "whole")))


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        ({"train": [], "val": []}, ValueError, "/train: expected meta-batches, got none"),
        ({"train": own_parts.Sampler()}, ValueError, "data: expected a part 'val', got train"),
        ({"train": own_parts.Sampler(), "val": 3}, TypeError, "expected data to be ImageClasses"),
        (
            {"train": own_parts.Sampler(), "val": own_parts.stream(0, 2)},
            TypeError,
            r"expected data\['val'\] to be begun anew for every validation",
        ),
        ({"train": [(1, 2)], "val": []}, TypeError, r"each meta-batch to be a TaskBatch, or \(\("),
        ({"train": ["ab"], "val": []}, TypeError, "each meta-batch to be a TaskBatch"),
        (lambda: own_parts.Sampler(), ValueError, "a function of split or seed, so that"),
        (lambda: own_parts.classes("train"), ValueError, "to be a function of split, got"),
        (lambda split: 3, TypeError, "expected data to be ImageClasses"),
    ],
)
def test_data_that_are_none_are_refused(tmp_path, data, error, sentence):
    with pytest.raises(error, match=sentence):
        Trainer(config(data="own"), Run(tmp_path), data=data)
    assert not Run(tmp_path).started


def test_data_that_end_are_refused_where_they_are_needed(tmp_path):
    few = {"train": iter([own_parts.batch(0)] * 3), "val": [own_parts.batch(1)] * 2}
    with pytest.raises(ValueError, match="its meta-batches ended after 3, and training goes on"):
        Trainer(config(data="own"), Run(tmp_path / "a"), data=few).fit()
    few = {"train": own_parts.Sampler(), "val": [own_parts.batch(1)]}
    said = r"validation_tasks to be at most 2, the tasks of .*/val, got 4"
    with pytest.raises(ValueError, match=said):
        Trainer(config(data="own"), Run(tmp_path / "b"), data=few)
    assert not Run(tmp_path / "b").started
    wide = {"train": own_parts.Sampler(tasks=3), "val": own_parts.Sampler()}
    with pytest.raises(ValueError, match="each meta-batch to be of 2 tasks, as tasks says, got 3"):
        Trainer(config(data="own"), Run(tmp_path / "c"), data=wide).fit()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"learner": MAML(own_parts.Net()), "model": own_parts.net},
            "model to be None beside a le",
        ),
        ({"learner": MAML(own_parts.Net())}, "expected options to be empty beside a learner"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)},
            "optimizer to be one of the learner's parameters, got '2 others'",
        ),
        ({"model": lambda: 3}, "what model <.*lambda>> returns to be a module, got int 3"),
        ({"optimizer": lambda: 3}, "returns to be an optimizer, got int 3"),
        ({"loss": lambda outputs, targets: outputs}, "loss to be a function to one number"),
    ],
)
def test_objects_that_do_not_fit_are_refused(tmp_path, given, sentence):
    asked = config(model=None if "model" in given else NAMED["model"])
    with pytest.raises((TypeError, ValueError), match=sentence):
        Trainer(asked, Run(tmp_path), **given).fit()


def test_stages_take_a_function_that_makes_their_optimizers(tmp_path):
    ticket = {**INNER, "rounds": 1, "rewind": 1}
    asked = config(learner="meta-ticket", options=ticket, iterations=2)
    model = ms.nn.Conv4(1, 8, 2, 3, blocks=2)
    fixed = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match="a function that returns one, for each of 2 stages, got S"
    ):
        Trainer(asked, Run(tmp_path), model=model, optimizer=fixed)
    outcome = Trainer(asked, Run(tmp_path), model=model, optimizer=own_parts.descent).fit()
    assert outcome.iteration == 3


def test_former_files_name_the_backbone(tmp_path):
    fields = {"learner": "maml", "backbone": "resnet12"}
    assert RunConfig.from_dict(fields) == RunConfig(learner="maml", model="resnet12")


def test_runs_that_are_judged_differently_get_a_table_each(tmp_path):
    small = {"model": f"{MINE}:Words", "data": f"{MINE}:sentences"}
    one, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    Trainer(config(**small), one).fit()
    Trainer(config(**small, metric=f"{MINE}:top2"), other).fit()
    result = invoke("evaluate", one, other)
    assert result.exit_code == 0, result.output
    assert (result.stdout.count("MACs:"), result.stderr) == (2, "")
    rows = [line for line in result.stdout.splitlines() if " ± " in line]
    assert len(rows) == 2
    assert all(row.split()[-3:-1] == ["–", "12"] for row in rows)
    assert "of one input" in " ".join(result.stdout.split())
    assert "of one kind of task" in one_line(invoke("compare", one, other))
