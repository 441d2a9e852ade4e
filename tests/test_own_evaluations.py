"""Evaluations and comparisons of runs with parts of one's own."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from support import own_parts
from test_own_parts import MINE, config

from metasparse_ext import cli
from metasparse_ext.cli.display import draw_figures
from metasparse_ext.training import CheckpointError, Run, Trainer, compare, evaluate_run
from metasparse_ext.training.kept import find, kept

pytestmark = pytest.mark.usefixtures("one_thread")

REGRESSION = {"data": f"{MINE}:regression", "model": f"{MINE}:line", "loss": "mse"}


def trained(folder, *, objects=None, **changes):
    run = Run(folder)
    Trainer(config(**changes), run, **(objects or {})).fit()
    return run


# All outputs count, unless fewer ways are asked for.


@pytest.mark.parametrize(
    "parts",
    [
        {**REGRESSION, "model": f"{MINE}:Members", "loss": f"{MINE}:squared"},
        {**REGRESSION, "data": f"{MINE}:eight"},
        {"data": f"{MINE}:ten", "model": f"{MINE}:ten_net"},
    ],
    ids=["ensemble", "eight targets", "ten classes"],
)
def test_no_output_is_left_out(tmp_path, parts):
    run = trained(tmp_path, iterations=1, evaluation_tasks=40, **parts)
    found = evaluate_run(run)
    again = trained(tmp_path / "all", iterations=1, evaluation_tasks=40, ways=10, **parts)
    assert found.numbers["episodes"] == evaluate_run(again).numbers["episodes"]
    assert found.score == evaluate_run(again).score


def test_fewer_ways_are_of_classes_alone(tmp_path):
    run = trained(tmp_path / "classes", iterations=1)
    assert evaluate_run(run, ways=2).name == "test-2way"
    run = trained(tmp_path / "numbers", iterations=1, **REGRESSION)
    with pytest.raises(ValueError, match=r"ways to be None, .* has targets, not classes, got 2"):
        evaluate_run(run, ways=2)


# Every evaluation has a file of its own.


def test_other_data_take_the_place_of_none(tmp_path):
    run = trained(tmp_path)
    own = evaluate_run(run)
    before = run.evaluation_path("test").read_bytes()
    others = [
        evaluate_run(run, data={"test": own_parts.arrays("val")}),
        evaluate_run(run, data={"test": own_parts.arrays("train")}),
        evaluate_run(run, data=own_parts.arrays),
        evaluate_run(run, data=lambda split: own_parts.classes("train")),
    ]
    names = {each.name for each in (own, *others)}
    assert len(names) == 5
    assert all(name.isascii() and not set("<>:") & set(name) for name in names)
    assert run.evaluation_path("test").read_bytes() == before
    for each in others:
        assert vars(kept(run, each.name)) == json.loads(json.dumps(vars(each)))
    assert evaluate_run(run, data=f"{MINE}:arrays").name == others[2].name
    assert evaluate_run(run, data=own_parts.classes).name == "test"


def test_objects_like_those_of_the_training_do_not_take_its_place(tmp_path):
    data = {split: own_parts.arrays(split) for split in ("train", "val", "test")}
    run = trained(tmp_path, data="own", objects={"data": data})
    assert evaluate_run(run, data=data).name == "test"
    other = evaluate_run(run, data={"test": data["val"]})
    assert other.name == f"test-{other.numbers['episodes'][:8]}"
    assert evaluate_run(run, data=data).name == "test"


def test_data_that_the_network_is_not_for(tmp_path):
    images = np.zeros((40, 16, 16), np.uint8), np.arange(8).repeat(5)
    run = trained(tmp_path / "a", iterations=1, model="mlp")
    pattern = r"data to be of inputs of shape \(1, 8, 8\), .* got inputs of shape \(1, 16, 16\)$"
    with pytest.raises(ValueError, match=pattern):
        evaluate_run(run, data={"test": images})
    run = trained(tmp_path / "b", iterations=1, **REGRESSION)
    with pytest.raises(ValueError, match=r"\(1,\) and 1 targets, .* \(1,\) and 8 targets$"):
        evaluate_run(run, data=own_parts.eight)


def test_evaluations_as_json(tmp_path):
    runs = [trained(tmp_path / name, iterations=1, seed=seed) for seed, name in enumerate("ab")]
    result = CliRunner().invoke(cli.main, ["evaluate", *map(str, runs), "--json"])
    assert result.exit_code == 0, result.output
    for run, said in zip(runs, json.loads(result.stdout), strict=True):
        assert said.pop("run") == str(run)
        assert said == json.loads(run.evaluation_path("test").read_text())
        assert len(said["numbers"]["accuracies"]) == said["numbers"]["tasks"]


# Comparisons.


def test_an_evaluation_of_an_older_checkpoint_is_not_compared(tmp_path, caplog):
    asked = {"validate_every": 1, "iterations": 1}
    runs = [trained(tmp_path / str(seed), seed=seed, **asked, **REGRESSION) for seed in (0, 1)]
    runs.append(trained(tmp_path / "other", learner="fomaml", **asked, **REGRESSION))
    for run in runs:
        evaluate_run(run)
    assert len(compare(runs).contenders) == 2
    trained(runs[2].folder, learner="fomaml", **{**asked, "iterations": 9}, **REGRESSION)
    now = runs[2].best().iteration
    assert now > 1
    said = rf"its evaluation is of iteration 1, and its best checkpoint of iteration {now}; `metas"
    with pytest.raises(CheckpointError, match=said):
        compare(runs)
    drawn = draw_figures({"other": runs[2]}, tmp_path)
    assert [path.name for path in drawn] == ["learning-curves.png"]
    assert "is of iteration 1, and" in caplog.text
    evaluate_run(runs[2])
    assert compare(runs).evaluation.iteration == 1


def test_an_evaluation_is_on_as_many_tasks_as_are_asked_for(tmp_path):
    run = trained(tmp_path, iterations=1)
    evaluate_run(run)
    assert find(run).numbers["tasks"] == 4
    trained(tmp_path, iterations=1, evaluation_tasks=7)
    assert find(run) is None
    assert find(run, tasks=7) is None
    evaluate_run(run)
    assert find(run, tasks=7).name == "test"


def test_objects_are_not_taken_for_one_another(tmp_path):
    runs = []
    for seed, rate in ((0, 0.5), (1, 0.01)):
        learner = own_parts.Mine(own_parts.Net(), inner_lr=rate, inner_steps=1)
        given = {"learner": learner}
        alike = {"learner": "own", "model": None, "options": {}, "seed": seed}
        runs.append(trained(tmp_path / str(seed), objects=given, iterations=1, **alike))
        evaluate_run(runs[-1], **given)
    found = compare(runs)
    assert [len(each.runs) for each in found.contenders] == [1, 1]
